"""What ``segue check`` does: opens sets, looks at everything in them, and tells it as lines, JSON or a page."""

import json
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segue.data.check import check, domains
from segue.data.check.facts import Facts
from segue.data.finding import Finding, argument, merged, printable, reading
from segue.data.layouts import layout_of, open_images, open_listing
from segue.data.listing import Listing
from segue.data.stored_values import parse_map
from segue.errors import DataError

Track = Callable[[str, int], AbstractContextManager[Callable[[], None]]]
SIZES_SHOWN, CLASSES_SHOWN = 4, 30


@dataclass
class Audit:
    """One set and all that was found in it.

    Args:
        address: the set as it was named.
        listing: the set.
        findings: what is wrong with it.
        facts: what else was seen.
        options: those of the check that training needs too, as a shell takes them.
    """

    address: str
    listing: Listing
    findings: list[Finding]
    facts: Facts
    options: str = ""

    @property
    def stops(self) -> bool:
        """Whether training must not start."""
        return any(finding.stop for finding in self.findings)

    def account(self) -> dict[str, int]:
        """Images and masks that were found, and what becomes of them: used + dropped == found."""
        images = {pair.image: pair for split in self.listing.splits.values() for pair in split}
        labelled = any(pair.mask is not None for pair in images.values())
        used = sum(
            image not in self.facts.bad and (pair.mask is not None or not labelled) for image, pair in images.items()
        )
        bad = len(self.facts.bad.keys() & images.keys())
        bare = sum(pair.mask is None and image not in self.facts.bad for image, pair in images.items())
        apart = len(self.listing.stray) + len(self.listing.unnamed)
        dropped = bad + (bare if labelled else 0) + apart
        return {"found": len(images) + apart, "used": used, "dropped": dropped}

    def plain(self) -> dict[str, Any]:
        """Everything, with every occurrence, ready for JSON."""
        facts, classes = self.facts, self.listing.classes
        return {
            "data": self.address,
            "layout": self.listing.layout,
            "classes": list(classes),
            "splits": {name: len(pairs) for name, pairs in self.listing.splits.items()},
            **self.account(),
            "masks_read": facts.read,
            "pixels": dict(zip(classes, facts.pixels.tolist(), strict=True)),
            "images": dict(zip(classes, facts.images.tolist(), strict=True)),
            "sizes": {f"{w}x{h}": n for (w, h), n in facts.sizes.most_common()},
            "modes": dict(facts.modes),
            "ranges": facts.ranges,
            "tones": facts.tones,
            "findings": [_told(finding) for finding in self.findings],
        }

    def lines(self) -> list[str]:
        """The findings for a person: what was understood first, then each fault, then what to do next."""
        account = self.account()
        splits = ", ".join(f"{name} {len(pairs)}" for name, pairs in self.listing.splits.items())
        sizes = self.facts.sizes.most_common(SIZES_SHOWN)
        more = f" and {len(self.facts.sizes) - len(sizes)} more" if len(self.facts.sizes) > len(sizes) else ""
        lines = [
            f"{self.address} ({self.listing.layout}): {splits}; {len(self.listing.classes)} classes"
            + (": " + ", ".join(self.listing.classes[:CLASSES_SHOWN]) if self.listing.classes else ", no labels"),
            f"using {account['used']} of {account['found']} files found (images, and masks without one), "
            f"{account['dropped']} left out; {self.facts.read} masks read; sizes "
            + (", ".join(f"{w}x{h} ({n})" for (w, h), n in sizes) or "none")
            + more,
        ]
        if self.facts.read and self.facts.pixels.any():
            shares = 100 * self.facts.pixels / self.facts.pixels.sum()
            held = int((shares > 0).sum())
            top = np.argsort(-shares, kind="stable")[: min(held, CLASSES_SHOWN)]
            named = [f"{self.listing.classes[i]} {shares[i]:.3g} % in {self.facts.images[i]}" for i in sorted(top)]
            rest = f"; the largest {CLASSES_SHOWN} of {held}" if held > CLASSES_SHOWN else ""
            lines.append("share of the labelled pixels, and images: " + ", ".join(named) + rest)
        stops = sum(finding.stop for finding in self.findings)
        lines += [str(finding) for finding in self.findings]
        if stops:
            notes = _counted(len(self.findings) - stops, "note")
            lines.append(f"STOP: {_counted(stops, 'kind')} of fault that must be mended before training, {notes}")
        elif not self.listing.classes:
            images = argument(self.address)
            skip = " --skip-bad" if "--skip-bad" in self.options.split() else ""
            learnt = f"segue pretrain {images} --out RUN{skip}, or segue train LABELLED --unlabeled {images}{skip}"
            lines.append(f"no labels found. Next: {learnt}")
        else:
            notes = _counted(len(self.findings), "note")
            lines.append(f"sound: {notes}. Next: segue train {argument(self._to_train())} --out RUN{self.options}")
        return [printable(line) for line in lines]

    def _to_train(self) -> str:
        """The address that training takes: with a split where the set has none that is trained on by itself."""
        splits = self.listing.splits
        is_clear = "train" in splits or (len(splits) == 1 and not self.listing.unnamed)
        return self.address if is_clear else f"{self.address}:{next(iter(splits))}"


def _counted(number: int, what: str) -> str:
    """``1 note``, ``2 notes``."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def _told(finding: Finding) -> dict[str, Any]:
    """A finding as JSON that any reader takes, whatever bytes the names hold."""
    told = {**asdict(finding), "stop": finding.stop}
    return {k: [printable(w) for w in v] if k == "where" else v for k, v in told.items()}


def audit(
    address: str,
    *,
    layout: str,
    mapping: str,
    allow_missing: bool,
    track: Track,
    skip_bad: bool = False,
    workers: int | None = None,
) -> Audit:
    """Looks at every file of one set.

    Args:
        address: its folder, or ``FOLDER:split``; a folder without labels is looked at as unlabelled images.
        layout, mapping, allow_missing, skip_bad: as of training.
        track: a progress bar.
        workers: processes; all cores if None.
    """
    listing = open_any(address, layout)
    listing = listing.extended(parse_map(mapping, listing)) if mapping else listing
    options = reading(layout, mapping, allow_missing=allow_missing, skip_bad=skip_bad)
    total = len({pair.image for split in listing.splits.values() for pair in split})
    with track(f"check {address}", total) as tick:
        findings, facts = check(
            listing, allow_missing=allow_missing or not listing.classes, skip_bad=skip_bad, sample=None, hashes=True,
            options=options, workers=os.cpu_count() or 1 if workers is None else workers, tick=tick,
        )  # fmt: skip
    return Audit(address, listing.toned(facts.tones), findings, facts, options)


def open_any(address: str, layout: str = "auto") -> Listing:
    """A labelled set, or a folder of images as a listing without classes."""
    try:
        return open_listing(address, layout)
    except DataError:
        root = Path(address)
        labelled = not root.is_dir() or layout != "auto" or any((root / name).exists() for name in ("labels", "masks"))
        labelled = labelled or layout_of(root) is not None
        if labelled or (root / "images").is_dir() or (root / "dataset.json").exists():
            raise
        pairs = open_images(address)
        return Listing(root, "images", (), (), {"images": pairs}, {})


def audit_domains(source: Audit, target: Audit, maps: Path | None) -> tuple[list[Finding], str]:
    """What is said of two domains, and the proposed class map as text; ``maps`` is where it is written to.

    Raises:
        DataError: the file is there already.
    """
    findings = domains.domain_faults(source.listing, target.listing, source.facts, target.facts)
    text = ""
    if maps is not None and source.listing.classes == target.listing.classes:
        text = f"the classes of both are the same, so none has to be mapped: {maps} is not written"
    elif maps is not None and not target.listing.classes:
        text = f"{target.address} names no classes to map to, so {maps} is not written: give it a classes.txt"
    if target.listing.classes and source.listing.classes != target.listing.classes:
        proposal = domains.proposed_map(source.listing.classes, target.listing.classes)
        text = domains.map_text(proposal, source.address, target.address)
        if maps is not None:
            if maps.exists():
                raise DataError(f"--maps {maps} is there already; name another file")
            maps.write_text(text, encoding="utf-8")
    return merged(findings), text


def as_json(audits: Sequence[Audit], further: Sequence[Finding]) -> str:
    """All audits as one JSON text."""
    told = {"sets": [audit.plain() for audit in audits], "findings": [_told(f) for f in further]}
    return json.dumps(told, indent=1, default=_number)


def _number(value: object) -> object:
    """NumPy's numbers as Python's."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} is no JSON")
