"""What was read of many pairs, added up: counts and names, and nothing that grows with the pixels."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from segue.data.check.inspection import MANY_VALUES, Seen
from segue.data.sample import Array, Tones
from segue.data.tones import Ranges, joined_tones, tones_of

BAD_FILES = ("E108", "E110", "E111", "E112", "E113", "E130")  # of single pairs: --skip_bad goes on without them


@dataclass
class Facts:
    """What was read of the pairs.

    Args:
        pixels: labelled pixels of each class (K,).
        images: images in which each class occurs (K,).
        by_split: images in which each class occurs, by split (K,).
        read: masks whose pixels were read.
        ignored: pixels of these masks that are of no class.
        values: stored values that occur in any mask.
        many: masks with more values than `MANY_VALUES`, in areas as objects have them.
        sizes: images of each (width, height).
        modes: images of each kind of pixels.
        turned: images that EXIF turns.
        bad: codes of `BAD_FILES` by the image of the pair that has them.
        digests, looks: hashes by image path, where asked for.
        deep: percentiles of each band of each image that is deeper than 8 bits, by its kind of pixels.
        rules: for deep images that hold whatever is read, as those of a model are.
    """

    pixels: Array
    images: Array
    by_split: dict[str, Array] = field(default_factory=dict)
    read: int = 0
    ignored: int = 0
    values: set[int] = field(default_factory=set)
    many: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    turned: list[str] = field(default_factory=list)
    bad: dict[Path, set[str]] = field(default_factory=dict)
    digests: dict[str, bytes] = field(default_factory=dict)
    looks: dict[str, int] = field(default_factory=dict)
    deep: dict[str, list[Ranges]] = field(default_factory=dict)
    rules: Tones = ()

    @classmethod
    def none(cls, classes: int, rules: Tones = ()) -> "Facts":
        """Before anything was read."""
        return cls(np.zeros(classes, np.int64), np.zeros(classes, np.int64), rules=rules)

    @property
    def ranges(self) -> dict[str, Ranges]:
        """`PERCENTILES` of each band of images deeper than 8 bits, by kind: extremes of all, medians of the rest."""
        found = {}
        for kind, rows in sorted(self.deep.items()):
            table = np.array(rows)  # (images, bands, percentiles)
            middle = np.median(table, axis=0)
            middle[:, 0], middle[:, -1] = table[..., 0].min(0), table[..., -1].max(0)
            found[kind] = tuple(map(tuple, middle.tolist()))
        return found

    @property
    def tones(self) -> Tones:
        """The rule for such images, and what else ``rules`` says."""
        return joined_tones(self.rules, tones_of(self.ranges))

    def add(self, seen: Seen, splits: Sequence[str]) -> None:
        """Adds one pair, which is in these splits."""
        if seen.findings and (codes := {found.code for found in seen.findings}.intersection(BAD_FILES)):
            self.bad[seen.pair.image] = codes
        if seen.size is not None:
            self.sizes[seen.size] += 1
            self.modes[seen.mode] += 1
        if seen.range:
            self.deep.setdefault(seen.mode, []).append(seen.range)
        if seen.is_turned:
            self.turned.append(str(seen.pair.image))
        if seen.digest:
            self.digests[str(seen.pair.image)] = seen.digest
        if seen.look is not None and seen.digest:
            self.looks[str(seen.pair.image)] = seen.look
        if seen.counts is not None:
            held = seen.counts > 0
            self.read += 1
            self.pixels += seen.counts
            self.ignored += math.prod(seen.size or (0, 0)) - int(seen.counts.sum())
            self.images += held
            for name in splits:
                self.by_split[name] = self.by_split.get(name, 0) + held
            self.values.update(seen.values)
            self.many += len(seen.values) > MANY_VALUES and not seen.is_smoothed

    def add_all(self, other: "Facts") -> None:
        """Adds what was read of other pairs."""
        self.pixels += other.pixels
        self.images += other.images
        for name, held in other.by_split.items():
            self.by_split[name] = self.by_split.get(name, 0) + held
        self.read += other.read
        self.ignored += other.ignored
        self.values |= other.values
        self.many += other.many
        self.sizes.update(other.sizes)
        self.modes.update(other.modes)
        self.turned += other.turned
        self.bad.update(other.bad)
        self.digests.update(other.digests)
        self.looks.update(other.looks)
        for mode, rows in other.deep.items():
            self.deep.setdefault(mode, []).extend(rows)
