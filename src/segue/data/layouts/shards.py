"""A set in tar shards, as ``segue data shard`` writes it: for sets of more files than a disk or a network bears.

    segue-shards.json        classes, splits, and every shard with its bytes and sha256
    shard-000000.tar         NAME.jpg, NAME.labels.png, NAME.instances.png: the files of the set, byte for byte
    shard-000000.json        where each of them begins

Pairs are found by the index, in the order of the set that was packed, and read by their place: any of them at any
time, so that a run reads, and resumes, as from the files themselves.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from segue.data.archive import check_path
from segue.data.listing import Listing, Pair
from segue.data.packed import BLOCK, Packed, look_again
from segue.data.sample import IMAGE_SUFFIXES
from segue.errors import DataError
from segue.records import expecting, read_json

RECORD = "segue-shards.json"
FORMAT = 1
WHAT = "the record of a set in shards"


class Shards:
    """``segue-shards.json`` and what it names."""

    @staticmethod
    def matches(root: Path) -> bool:
        """Whether the record is there."""
        return (root / RECORD).is_file()

    @staticmethod
    def read(root: Path) -> Listing:
        """The set in ``root``.

        Raises:
            DataError: the record is damaged; a shard or its index is missing, of another size, or they contradict
                each other.
        """
        look_again()
        path = root / RECORD
        record = read_json(path, WHAT)
        with expecting(path, WHAT):
            if record["format"] != FORMAT:
                raise DataError(f"{path} has format {record['format']!r}; this version reads {FORMAT}: update Segue")
            pairs = tuple(itertools.chain.from_iterable(_pairs_of(root, shard) for shard in record["shards"]))
            splits = {str(name): tuple(_chosen(pairs, parts)) for name, parts in record["splits"].items()}
            named = {pair.image for split in splits.values() for pair in split}
            return Listing(
                root=root,
                layout="shards",
                classes=tuple(map(str, record["classes"])),
                colors=tuple((int(r), int(g), int(b)) for r, g, b in record["colors"]),
                splits=splits,
                ids={int(stored): int(i) for stored, i in record["ids"]},
                by_color=bool(record["by_color"]),
                unnamed=tuple(Pair(pair.name, pair.image) for pair in pairs if pair.image not in named),
                things=tuple(map(int, record["things"])),
            )


def all_images(root: Path) -> tuple[Pair, ...]:
    """Every image of the shards, those of no split too, in the order of their paths; masks are left alone.

    Raises:
        DataError: as of `Shards.read`.
    """
    look_again()
    record = read_json(root / RECORD, WHAT)
    with expecting(root / RECORD, WHAT):
        pairs = [pair for shard in record["shards"] for pair in _pairs_of(root, shard)]
    pairs.sort(key=lambda pair: [*pair.name.split("/")[:-1], pair.image.name])
    return tuple(Pair(pair.name, pair.image) for pair in pairs)


def _chosen(pairs: Sequence[Pair], parts: Sequence[Sequence[int]]) -> Iterator[Pair]:
    """The pairs of a split: those from each start to before each stop."""
    for start, stop in parts:
        if not 0 <= start <= stop <= len(pairs):
            raise ValueError(f"pairs {start} to {stop} of {len(pairs)}")
        yield from pairs[start:stop]


def _pairs_of(root: Path, shard: dict[str, Any]) -> Iterator[Pair]:
    """The pairs of one shard, in its order.

    Raises:
        DataError: shard or index are missing or cut short, or do not belong together.
    """
    name, size = str(shard["tar"]), int(shard["bytes"])
    if not re.fullmatch(r"[\w.-]+\.tar", name):
        raise DataError(f"{root / RECORD} names the shard {name!r}; a shard is a .tar file beside it")
    tar, index = root / name, root / f"{name.removesuffix('.tar')}.json"
    for path in (tar, index):
        if not path.is_file():
            raise DataError(f"{path} is missing: {root / RECORD} names it; copy it again")
    there = tar.stat().st_size
    if there != size:
        how = "cut short" if there < size else "of another set"
        raise DataError(f"{tar} is {how}: {there:,} bytes, {size:,} were written; copy it again")
    rows = read_json(index, "the index of a shard")["pairs"]
    if len(rows) != shard["pairs"]:
        raise DataError(f"{index} lists {len(rows)} pairs, {root / RECORD} {shard['pairs']}; copy them again, together")
    with expecting(index, "the index of a shard"):
        for pair, *files in rows:
            image, mask, instances = (None if file is None else _placed(tar, size, file) for file in files)
            if image is None or image.suffix.lower() not in IMAGE_SUFFIXES:
                raise ValueError(f"{pair!r} has no image")
            yield Pair(check_path(pair, str(index)), image, mask, instances=instances)


def _placed(tar: Path, size: int, file: Sequence[Any]) -> Packed:
    """A file of the shard, by its row in the index: name, first byte, bytes."""
    member, offset, length = file
    if type(offset) is not int or type(length) is not int or offset < BLOCK or length < 0 or offset + length > size:
        raise ValueError(f"{member!r} would lie outside the shard")
    return Packed.at(tar, check_path(member, str(tar)), offset, length)
