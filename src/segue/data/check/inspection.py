"""What one image and its label map show: sizes, modes, values, and the faults of this pair alone.

Images are read by their headers and their last bytes; label maps in full. Nothing here imports torch or keeps pixels,
so that many pairs can be looked at in parallel processes whose memory does not grow.
"""

import hashlib
import stat
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from segue.data.check.flat_png import flat_histogram, histogram, palette_at_head
from segue.data.decoder import Decoder, mask_image, unknown_values
from segue.data.finding import Finding, drawn_elsewhere
from segue.data.listing import Pair
from segue.data.outlines import segment_ids
from segue.data.packed import content
from segue.data.sample import (
    FORMATS,
    IGNORE,
    UNREAD_SUFFIXES,
    UNREADABLE,
    Array,
    kind_of,
    open_image,
    orientation,
    upright_size,
)
from segue.data.stored_values import ignoring, is_whole
from segue.data.tones import Ranges, deep_pixels, is_deep, percentiles, void_pixels

BLURRED = 8  # values in one mask that are no class, from which on it was smoothed or compressed rather than mislabelled
MANY_VALUES = 40  # stored values in a mask that hint at instance ids
TAIL = 64  # last bytes of a file, where JPEG and PNG say that they are whole
REEXPORT = "Export it again as PNG, without smoothing (nearest neighbour)"


@dataclass
class Seen:
    """What one pair showed.

    Args:
        pair: the pair.
        findings: its own faults.
        size: (width, height) of the upright image; None where it cannot be read.
        mode: kind of pixels of the image; empty where it cannot be read.
        is_turned: EXIF turns the image.
        values: stored values of the mask; empty for coloured and drawn masks.
        is_smoothed: those values are more than objects could have, and lie along edges.
        counts: labelled pixels by class (K,); None where no mask was read.
        digest: of the image's bytes; empty where it was not asked for.
        look: 64-bit difference hash of the picture; None where it was not asked for.
        range: percentiles of each band of an image deeper than 8 bits.
    """

    pair: Pair
    findings: list[Finding] = field(default_factory=list)
    size: tuple[int, int] | None = None
    mode: str = ""
    is_turned: bool = False
    values: Sequence[int] = ()
    is_smoothed: bool = False
    counts: Array | None = None
    digest: bytes = b""
    look: int | None = None
    range: Ranges = ()


@dataclass(frozen=True)
class Inspector:
    """Looks at pairs of one set.

    Args:
        root: the set's folder.
        mend: the command that writes a mended copy.
        decoder: of its masks.
        classes: their names.
        hashes: also take the digest and the look of every image.
    """

    root: str
    mend: str
    decoder: Decoder
    classes: tuple[str, ...]
    hashes: bool = False

    def __call__(self, pair: Pair, *, pixels: bool = True, ranged: Container[str] = ()) -> Seen:
        """What ``pair`` shows.

        Args:
            pair: an image and its mask.
            pixels: the mask is read in full, else by its header.
            ranged: kinds of deep pixels whose range is known from others; without ``pixels`` it is read of the rest.
        """
        seen = Seen(pair)
        image, mask_size = self._reached(pair.image), 0 if pair.mask is None else self._reached(pair.mask)
        if isinstance(image, Finding) or isinstance(mask_size, Finding):
            seen.findings += [found for found in (image, mask_size) if isinstance(found, Finding)]
            return seen
        if not self._image(seen, image, () if pixels else ranged) or pair.mask is None:
            return seen
        try:
            if pair.outlines is not None:
                if seen.size and pair.labelled_at and pair.labelled_at != seen.size:
                    seen.findings.append(drawn_elsewhere(pair.image, seen.size, pair.labelled_at))
                elif pixels:
                    self._drawn(seen, mask_image(pair))
                if not pair.outlines:
                    seen.findings.append(
                        Finding("W116", "no object is drawn: every pixel is background", (str(pair.image),),
                                "One that nobody has labelled yet teaches that nothing is there.",
                                "Nothing to do, if there is nothing. Else label it, or take its annotation away.")
                    )  # fmt: skip
                return seen
            if pixels and self._is_plain(pair) and (flat := flat_histogram(pair.mask, mask_size)) is not None:
                if self._fits(seen, flat[0]):
                    self._ids(seen, flat[1], self.decoder.table)
            else:
                with Image.open(content(pair.mask), formats=FORMATS) as mask:
                    self._lossless(seen, mask)
                    if self.decoder.by_color and mask.mode == "P":
                        seen.findings.append(indexed(pair.mask))
                    elif self._fits(seen, upright_size(mask)) and pixels:
                        self._mask(seen, mask)
            if seen.values and self._is_plain(pair):
                seen.findings += palette_faults(pair.mask, seen.values, self.decoder, self.classes)
            if len(seen.values) > MANY_VALUES and self._is_plain(pair):
                seen.is_smoothed = lies_along_edges(np.asarray(mask_image(pair)), len(self.classes))
        except UNREADABLE as error:
            seen.findings.append(unreadable(pair.mask, str(error), self.mend))
        return seen

    def _reached(self, path: Path) -> int | Finding:
        """`size_or_fault` of a file of the set."""
        return size_or_fault(path, Path(self.root))

    def _is_plain(self, pair: Pair) -> bool:
        """Whether a pixel of the mask is the stored value of a class."""
        return pair.segments is None and not pair.is_wide and not self.decoder.by_color

    def _image(self, seen: Seen, size: int, ranged: Container[str]) -> bool:
        """Header and end of an image of ``size`` bytes, the range of a deep one not ``ranged``; whether it is sound."""
        path = seen.pair.image
        try:
            with Image.open(content(path), formats=FORMATS) as header:
                seen.size = upright_size(header)
                seen.mode, seen.is_turned = kind_of(header), orientation(header) != 1
                is_whole = ends_whole(header, size)
                if self.hashes:
                    seen.look = difference_hash(header)
            if not is_whole and not self.hashes:
                open_image(path)
            if is_deep(seen.mode) and seen.mode not in ranged:
                self._deep(seen)
            if self.hashes:
                with path.open("rb") as file:  # in pieces: a file may be larger than the memory
                    seen.digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
        except UNREADABLE as error:
            seen.size = None
            seen.findings.append(unreadable(path, str(error), self.mend))
        return seen.size is not None

    def _deep(self, seen: Seen) -> None:
        """Images of more than 8 bits: not a number, or what range they use."""
        pixels = deep_pixels(seen.pair.image)
        is_void = void_pixels(seen.pair.image, pixels)
        if np.isfinite(pixels[~is_void]).all():
            seen.range = percentiles(pixels, is_void)
            return
        seen.findings.append(
            Finding("E113", "pixels that are no number (NaN or infinite)", (str(seen.pair.image),),
                    "One of them ruins a training step.", self._fix("leaves such images out"))
        )  # fmt: skip

    def _fix(self, does: str) -> str:
        return f"A mended copy {does}: {self.mend}"

    def _lossless(self, seen: Seen, mask: Image.Image) -> None:
        """E105 for masks in formats that change pixels."""
        if mask.format in ("JPEG", "MPO", "WEBP"):
            seen.findings.append(
                Finding("E105", "mask is saved with loss (JPEG or WebP)", (str(seen.pair.mask),),
                        "Compression changes class ids along every edge.",
                        f"{REEXPORT}. {self._fix('ignores the pixels that hold no class')}")
            )  # fmt: skip

    def _fits(self, seen: Seen, size: tuple[int, int]) -> bool:
        """Whether image and mask have one size."""
        pair = seen.pair
        image = seen.size or size
        if image == size:
            return True
        what = f"image {image[0]}x{image[1]}, mask {size[0]}x{size[1]}"
        if image == size[::-1] and seen.is_turned:
            what += " (the mask lies as the photo is stored, EXIF turns the photo)"
        seen.findings.append(
            Finding("E108", what, (f"{pair.image} and {pair.mask}",), "Labels would lie beside what they name.",
                    f"Export the mask at the size of its image. {self._fix('resizes or turns it (nearest neighbour)')}")
        )  # fmt: skip
        return False

    def _mask(self, seen: Seen, mask: Image.Image) -> None:
        """Values and classes of an opened mask."""
        if seen.pair.segments is not None:
            seen.findings += segment_faults(seen.pair, segment_ids(mask))
            self._drawn(seen, mask_image(seen.pair))
            return
        is_stored = mask.mode in ("L", "P") and orientation(mask) == 1
        image = mask if is_stored else mask_image(seen.pair)
        if self._is_plain(seen.pair) and image.mode in ("L", "P"):
            self._ids(seen, histogram(np.asarray(image).ravel()), self.decoder.table)
            return
        stored = np.asarray(image)
        decoded = self.decoder(stored)
        if not self.decoder.by_color:
            whole = stored[is_whole(stored)] if stored.dtype.kind == "f" else stored
            seen.values = np.unique(whole).astype(int).tolist()
        held = decoded[(decoded >= 0) & (decoded != IGNORE)]
        seen.counts = np.bincount(held.ravel(), minlength=len(self.classes))[: len(self.classes)]
        self._values(seen, unknown_values(stored, decoded) if (decoded < 0).any() else [])

    def _drawn(self, seen: Seen, image: Image.Image) -> None:
        """Classes of a mask that is drawn from segments or outlines."""
        self._ids(seen, histogram(np.asarray(image).ravel()), np.arange(IGNORE + 1))
        seen.values = ()

    def _ids(self, seen: Seen, pixels: Array, table: Array) -> None:
        """Classes of a mask by the pixels of each value (256,) and the class of each value."""
        values = pixels.nonzero()[0]
        ids, held = table[values], pixels[values]
        strange = np.flatnonzero(ids < 0)
        strange = strange[np.argsort(-held[strange], kind="stable")]
        unknown = [(str(values[i]), int(held[i])) for i in strange]
        ids = np.where(ids < 0, IGNORE, ids)
        seen.values = values.tolist()
        seen.counts = np.bincount(ids, held, IGNORE + 1)[: len(self.classes)].astype(np.int64)
        self._values(seen, unknown)

    def _values(self, seen: Seen, unknown: Sequence[tuple[str, int]]) -> None:
        """Findings on a mask that was read: each value that is no class, with its pixels, the commonest first."""
        path, by_color = str(seen.pair.mask), self.decoder.by_color
        is_known = any(found.code == "E105" for found in seen.findings)
        if len(unknown) >= BLURRED and not is_known:
            word = "colours" if by_color else "ids"
            seen.findings.append(
                Finding("E105", f"mask holds {BLURRED} or more {word} that are no class", (f"{path} ({len(unknown)})",),
                        "It was saved as JPEG or resized with smoothing, which invents classes along edges.",
                        f"{REEXPORT}. {self._fix('ignores those pixels')}")
            )  # fmt: skip
            is_known = True
        for value, pixels in () if is_known else unknown:
            if by_color:
                what = f"the colour {value} is no class"
                mend = f"Add the class with its colour. {self._fix('ignores those pixels')}"
            else:
                what = f"the value {value} is no class (classes are 0-{len(self.classes) - 1})"
                mend = "It is a colour and the first mask holds ids: write all masks as ids, or all in colours."
                if "," not in value:
                    mend = f"Mend the mask, add the class, {ignoring(value)}"
            seen.findings.append(
                Finding(
                    "E101", what, (f"{path} ({pixels} pixels)",), "It would be trained as something it is not.", mend
                )
            )
        if not unknown and seen.counts is not None and seen.counts.sum() == 0:
            seen.findings.append(
                Finding("W116", "every pixel is ignored", (path,), "Nothing is learnt from it.",
                        "Label it, or take it out.")
            )  # fmt: skip


def indexed(path: Path) -> Finding:
    """E104 for a palette picture among masks that are read by colour."""
    return Finding("E104", "masks are read by colour, as the first of them, and this one holds palette indices",
                   (str(path),), "An index would be taken for a grey.", "Save it as RGB.")  # fmt: skip


def palette_faults(path: Path, values: Sequence[int], decoder: Decoder, classes: Sequence[str]) -> list[Finding]:
    """E104 where a palette gives one of the ``values`` that occur the colour of a class that is not its own."""
    flat = palette_at_head(path)
    if flat is None:
        with Image.open(content(path), formats=FORMATS) as mask:
            flat = bytes(mask.getpalette() or ()) if mask.mode == "P" else b""
    if not flat:
        return []
    colors = decoder.colors
    names: dict[tuple[int, ...], str] = dict(zip(colors, classes, strict=True))
    for value in values:
        color, index = tuple(flat[3 * value : 3 * value + 3]), int(decoder.table[value])
        if color in names and 0 <= index < len(colors) and color not in (colors[index], *colors[value : value + 1]):
            place = f"{path} (index {value}: colour of {names[color]}, class {classes[index]})"
            return [
                Finding("E104", "the palette of a mask gives an index the colour of another class", (place,),
                        "One class would be learnt as another.",
                        "If the colours count, save every mask as RGB. If the indices do, save every mask as 8-bit "
                        "grey, or put the class list into the order of the palette.")
            ]  # fmt: skip
    return []


def lies_along_edges(values: Array, classes: int) -> bool:
    """Whether the rare values of a mask (H, W) come in no areas: it was smoothed, and they are no objects' numbers."""
    if values.ndim > 2:
        return False
    kinds, counts = np.unique(values, return_counts=True)
    is_rare = ~np.isin(values[:, :-1], kinds[counts.argsort()[-classes - 1 :]])
    is_flat = values[:, :-1] == values[:, 1:]
    return bool((is_flat & is_rare).sum() < 0.5 * is_rare.sum())


def size_or_fault(path: Path, root: Path) -> int | Finding:
    """Bytes of a plain file, or why it is none: a broken link or one out of ``root``, a device, no permission."""
    try:
        found = path.lstat()
        if stat.S_ISREG(found.st_mode):
            return found.st_size
        found = path.stat()
        if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
            what = "a link leads out of the data set's folder"
        elif not stat.S_ISREG(found.st_mode):
            what = "a device, pipe or folder stands where a file should be"
        else:
            return found.st_size
    except (OSError, ValueError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        what = f"the file cannot be reached ({reason})"
    return _unreachable(path, what)


def _unreachable(path: Path, what: str) -> Finding:
    """E130."""
    return Finding("E130", what, (str(path),), "Its content is not the data set's.",
                   "Put the file itself there, readable, or go on without it: --skip-bad")  # fmt: skip


def unreadable(path: Path, reason: str, mend: str) -> Finding:
    """A file that gives no picture: E110 cut short, E111 no image, E112 too large. ``mend`` writes a copy without."""
    size = path.stat().st_size if path.exists() else 0
    lower = reason.lower()
    if "permission denied" in lower:
        return _unreachable(path, "no permission to read the file")
    reason = reason.replace(f"{path} ", "").replace(f"{path}: ", "")
    without = f"or go on without it: --skip-bad (or a copy: {mend})"
    if path.suffix.lower() in UNREAD_SUFFIXES:
        return Finding("E111", f"picture is of a kind Segue does not read ({path.suffix})", (str(path),),
                       "What it shows would be missing.", f"Convert it to PNG or JPEG, {without}")  # fmt: skip
    if "decompression bomb" in lower:
        # fmt: off
        return Finding("E112", "image is larger than the limit of pixels", (f"{path} ({reason})",),
                       "It could exhaust the machine.", "Cut it into pieces, or go on without it: --skip-bad")
        # fmt: on
    code = "E110" if size and ("truncated" in lower or "broken" in lower) else "E111"
    what = "file is empty" if size == 0 else ("file is cut short" if code == "E110" else "file is no image Segue reads")
    return Finding(code, what, (f"{path} ({size} bytes)",), f"It holds no whole picture ({reason}).",
                   f"Export it again, {without}")  # fmt: skip


def ends_whole(header: Image.Image, size: int) -> bool:
    """Whether the last of ``size`` bytes of an opened JPEG or PNG show that it is whole; else decoding tells."""
    file = getattr(header, "fp", None)
    if file is None or header.format not in ("JPEG", "PNG"):
        return False
    place = file.tell()
    file.seek(max(0, size - TAIL))
    tail = file.read(TAIL)
    file.seek(place)
    return b"\xff\xd9" in tail if header.format == "JPEG" else bool(tail[-8:-4] == b"IEND")


def difference_hash(image: Image.Image) -> int:
    """64 bits: whether each of 8 x 8 cells is darker than its right neighbour (a perceptual difference hash).

    Pictures that differ in size, compression or a little in brightness share most bits; JPEGs are decoded small.
    """
    image.draft("L", (72, 64))
    small = image.convert("L").resize((9, 8), Image.Resampling.BOX)
    cells = np.asarray(small, np.int16)
    return int.from_bytes(np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes(), "big")


def segment_faults(pair: Pair, ids: Array) -> list[Finding]:
    """E122 and E124: ids and areas of a panoptic PNG that contradict its annotation."""
    found, where = [], str(pair.mask)
    values, pixels = np.unique(ids, return_counts=True)
    held = {int(v): int(n) for v, n in zip(values, pixels, strict=True) if v}
    stated = {segment.id: segment for segment in pair.segments or ()}
    lost = [f"{where} (segment {i} of segments_info)" for i in stated if i not in held]
    extra = [f"{where} (id {i}, {n} pixels)" for i, n in held.items() if i not in stated]
    wrong = [
        f"{where} (segment {i}: area {segment.area}, {held[i]} pixels)"
        for i, segment in stated.items()
        if i in held and segment.area is not None and segment.area != held[i]
    ]
    mend = "Write segments_info and PNG again from one source, or leave the pair out"
    for code, what, places, why in (
        ("E122", "segments_info names a segment that the PNG does not hold", lost, "An object would be lost."),
        ("E122", "the PNG holds an id that segments_info does not name", extra, "Its pixels would have no class."),
        ("E124", "area in segments_info is not that of the PNG", wrong, "PNG and JSON may not belong together."),
    ):
        if places:
            found.append(Finding(code, what, tuple(places), why, mend))
    return found
