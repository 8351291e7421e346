"""The page of ``segue check --html``: what is in a set and what is wrong with it, with pictures; one offline file."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segue.data.check.audit import Audit
from segue.data.decoder import UNKNOWN, Decoder, mask_image
from segue.data.finding import Finding, printable
from segue.data.listing import Listing, Pair
from segue.data.sample import IGNORE, UNREADABLE
from segue.data.tones import read_rgb
from segue.errors import DataError
from segue.text import page

SIDE = 220  # pixels of a picture on the page
SHEET = 24  # pictures of the contact sheet
FAULTY = 12  # pictures of faulty pairs a set
MAGENTA = (255, 0, 255)  # pixels whose value is no class


def write_page(path: Path, audits: Sequence[Audit], further: Sequence[Finding]) -> None:
    """Writes the page.

    Raises:
        DataError: ``path`` is there already.
    """
    if path.exists():
        raise DataError(f"--html {path} is there already; name another file")
    sets, template = [set_view(audit) for audit in audits], Path(__file__).with_suffix(".html.j2")
    content = page(template, sets=sets, further=[_finding(f) for f in further])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def set_view(audit: Audit) -> dict[str, Any]:
    """What the page says of one set."""
    listing, facts = audit.listing, audit.facts
    shares = facts.pixels / max(1, int(facts.pixels.sum()))
    pairs = [pair for split in listing.splits.values() for pair in split]
    every = max(1, len(pairs) // SHEET)
    return {
        "address": printable(audit.address),
        "layout": listing.layout,
        "account": audit.account(),
        "splits": {name: len(split) for name, split in listing.splits.items()},
        "stops": sum(finding.stop for finding in audit.findings),
        "findings": [_finding(finding) for finding in audit.findings],
        "classes": [
            {"name": name, "color": "#{:02x}{:02x}{:02x}".format(*color), "share": float(share), "images": int(images),
             "pixels": int(pixels)}
            for name, color, share, images, pixels in zip(
                listing.classes, listing.colors, shares, facts.images, facts.pixels, strict=True
            )
        ],
        "largest": float(shares.max()) if len(shares) else 0.0,
        "read": facts.read,
        "sizes": [(f"{w} x {h}", n) for (w, h), n in facts.sizes.most_common(12)],
        "modes": facts.modes.most_common(),
        "ranges": facts.ranges,
        "faulty": _faulty(audit, pairs),
        "sheet": [picture for pair in pairs[::every][:SHEET] if (picture := _picture(pair, listing)) is not None],
    }  # fmt: skip


def _finding(finding: Finding) -> dict[str, Any]:
    """A finding as the page shows it."""
    return {
        "code": finding.code,
        "stop": finding.stop,
        "what": printable(finding.what),
        "where": [printable(place) for place in finding.where[:20]],
        "count": len(finding.where),
        "why": printable(finding.why),
        "fix": printable(finding.fix),
    }


def _faulty(audit: Audit, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """Pictures of pairs that a finding names, a few of each finding."""
    shown: list[dict[str, Any]] = []
    for finding in audit.findings:
        places = " ".join(finding.where[:50])
        named = [p for p in pairs if str(p.image) in places or (p.mask is not None and str(p.mask) in places)]
        for pair in named[:3]:
            if len(shown) < FAULTY and not finding.code.startswith("W109"):
                picture = _picture(pair, audit.listing)
                bare = {"name": printable(pair.name), "image": "", "mask": ""}
                shown.append({**(picture or bare), "code": finding.code})
    return shown


def _picture(pair: Pair, listing: Listing) -> dict[str, str] | None:
    """A picture and its mask in the classes' colours, small, as data addresses; None where the image cannot be read."""
    try:
        image = read_rgb(pair.image, pair.tones)
        image.thumbnail((SIDE, SIDE))
    except UNREADABLE:
        return None
    mask = ""
    if pair.mask is not None:
        try:
            mask = _address(_painted(pair, listing), "PNG")
        except UNREADABLE:
            mask = ""
    return {"code": "", "name": printable(pair.name), "image": _address(image, "JPEG"), "mask": mask}


def _painted(pair: Pair, listing: Listing) -> Image.Image:
    """The mask in the colours of its classes: black where ignored, magenta where a value is no class."""
    stored = mask_image(pair)
    stored.thumbnail((SIDE, SIDE), Image.Resampling.NEAREST)
    drawn = pair.segments is not None or pair.outlines is not None
    ids = np.asarray(stored).astype(np.int16) if drawn else Decoder.of(listing)(np.asarray(stored))
    table = np.zeros((258, 3), np.uint8)
    table[: len(listing.colors)] = np.asarray(listing.colors, np.uint8)
    table[257] = MAGENTA
    return Image.fromarray(table[np.where(ids == UNKNOWN, 257, np.where(ids == IGNORE, 256, ids))])


def _address(image: Image.Image, form: str) -> str:
    """A picture as a data address."""
    buffer = io.BytesIO()
    image.save(buffer, form)
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
