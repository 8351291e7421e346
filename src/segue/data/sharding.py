"""Any plain set as tar shards, which `segue.data.layouts.shards` reads: each file byte for byte, in the set's order.

The record is written last; ``.partial`` marks the folder until then, and the same command starts anew.
"""

import hashlib
import io
import itertools
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from segue.data.archive import check_path
from segue.data.finding import argument
from segue.data.layouts.shards import FORMAT, RECORD
from segue.data.listing import Listing, Pair
from segue.data.unfinished import written_in_full
from segue.disk import write_atomically
from segue.errors import DataError

SHARD = 256 << 20  # bytes of a shard: large enough to be read in one stream, small enough to be copied again


def write_shards(
    listing: Listing,
    out: Path,
    *,
    further: Sequence[Pair] = (),
    size: int = SHARD,
    options: str = "",
    tick: Callable[[], None] = lambda: None,
) -> dict[str, int]:
    """Packs the set into ``out``: how many pairs, files, shards and bytes were written.

    Args:
        listing: a set whose masks, if any, are pictures of ids or colours.
        out: an absent or empty folder, or one that an interrupted call left.
        further: images of no split that the listing does not name, which learning without labels uses.
        size: bytes after which the next shard is begun.
        options: with which the set was read, for the command that is shown: see `segue.data.finding.reading`.
        tick: called after each pair.

    Raises:
        DataError: ``out`` holds something else, masks are drawn from annotation files, or a file cannot be read.
    """
    pairs = _refuse_unfit(listing, further, options)
    numbers = {pair.image: i for i, pair in enumerate(pairs)}
    shards: list[dict[str, Any]] = []
    waiting = iter(pairs)
    with written_in_full(out, listing.root, "shards", _is_shard):
        for number in itertools.count():
            shard = _write_shard(out / f"shard-{number:06d}.tar", listing, waiting, size, tick)
            if not shard["pairs"]:
                break
            shards.append(shard)
        record = {
            "format": FORMAT, "packed_from": listing.layout, "classes": listing.classes, "colors": listing.colors,
            "ids": sorted(listing.ids.items()), "by_color": listing.by_color, "things": listing.things,
            "shards": shards,
            "splits": {name: ranges(numbers[pair.image] for pair in split) for name, split in listing.splits.items()},
        }  # fmt: skip
        write_atomically(out / RECORD, json.dumps(record, indent=1).encode())
    total = sum(shard["bytes"] for shard in shards)
    return {"images": len(pairs), "left_out": len(listing.stray), "shards": len(shards), "bytes": total}


def _is_shard(name: str) -> bool:
    """Whether a file of this name is one that `write_shards` writes, or a part of one."""
    return name.startswith(("shard-", ".shard-", RECORD, f".{RECORD}"))


def ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Whole numbers as runs of consecutive ones: (first, one behind the last), in their order."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][1] == number:
            found[-1] = (found[-1][0], number + 1)
        else:
            found.append((number, number + 1))
    return found


def _refuse_unfit(listing: Listing, further: Sequence[Pair], options: str) -> tuple[Pair, ...]:
    """The pairs in the order in which they are packed: split by split, then images of no split.

    Raises:
        DataError: the set cannot be packed as it is.
    """
    stops = [str(fault) for fault in listing.faults if fault.stop]
    if stops:
        raise DataError("\n".join(stops))
    pairs = {pair.image: pair for split in listing.splits.values() for pair in split}
    drawn = next((p for p in pairs.values() if p.outlines is not None or p.segments is not None or p.is_wide), None)
    if drawn is not None or listing.layout == "cityscapes":
        where = "instance ids of Cityscapes" if drawn is None else f"the labels of {drawn.name}"
        raise DataError(
            f"{where} are more than a picture of classes: bring the set into the canonical folder first, "
            f"segue data convert {argument(listing.root)} DST{options}, and pack that"
        )
    pairs |= {pair.image: pair for pair in (*listing.unnamed, *further) if pair.image not in pairs}
    if not pairs:
        raise DataError(f"{listing.root} lists no image: there is nothing to pack")
    return tuple(pairs.values())


class _Hashed(io.RawIOBase):
    """A file that is only appended to, and the sha256 of what was."""

    def __init__(self, path: Path) -> None:
        self.file, self.digest = path.open("wb"), hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self.file.write(data)

    def tell(self) -> int:
        return self.file.tell()

    def close(self) -> None:
        if not self.file.closed:
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
        super().close()


def _write_shard(
    path: Path, listing: Listing, pairs: Iterator[Pair], most: int, tick: Callable[[], None]
) -> dict[str, Any]:
    """Takes pairs until the shard has ``most`` bytes; what the record says of it. No file where no pair is left."""
    first = next(pairs, None)
    if first is None:
        return {"pairs": 0}
    rows: list[list[Any]] = []
    names: set[str] = set()
    with _Hashed(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for pair in itertools.chain([first], pairs):
            rows.append([check_path(pair.name, str(pair.image)), *_add_files(tar, pair, listing, names)])
            tick()
            if tar.offset >= most:
                break
    write_atomically(path.with_suffix(".json"), json.dumps({"pairs": rows}).encode())
    return {"tar": path.name, "bytes": path.stat().st_size, "sha256": file.digest.hexdigest(), "pairs": len(rows)}


def _add_files(tar: tarfile.TarFile, pair: Pair, listing: Listing, names: set[str]) -> list[list[Any] | None]:
    """Adds image, mask and instances; (name, first byte, bytes) of each, None for what there is not."""
    instances = listing.instance_path(pair) if pair.mask is not None else None
    parts = ((pair.image, ""), (pair.mask, ".labels"), (instances, ".instances"))
    placed: list[list[Any] | None] = []
    for file, kind in parts:
        if file is None:
            placed.append(None)
            continue
        name = f"{pair.name}{kind}{file.suffix}"
        if name in names:
            raise DataError(f"{file} would be {name} in the shard, as another file is; rename one of them")
        names.add(name)
        try:
            content = file.read_bytes()
        except OSError as error:
            raise DataError(f"{file} cannot be read ({error.strerror}); mend it, or take it out of the set") from None
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
        blocks = -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        placed.append([name, tar.offset - blocks, len(content)])
    return placed
