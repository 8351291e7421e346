"""Mapillary Vistas 1.2 (65 classes) and 2.0 (123 classes).

Neuhold et al., *The Mapillary Vistas Dataset for Semantic Understanding of Street Scenes*, ICCV 2017.

    config.json          {training,validation}/images/*.jpg   {training,validation}/labels/*.png        1.2
    config_v2.0.json     {training,validation}/images/*.jpg   {training,validation}/v2.0/labels/*.png   2.0
    config_v1.2.json     {training,validation}/images/*.jpg   {training,validation}/v1.2/labels/*.png   1.2, beside 2.0

Labels are palette PNGs whose values are places in the list ``labels`` of the config file, which gives names
(``readable``), colours and countable classes (``instances``). Those with ``"evaluate": false`` are ignored and are no
classes. Of two versions the newer is read. The split ``test`` has no labels.
"""

from pathlib import Path

from segue.data.finding import Finding
from segue.data.layouts.annotations import Entry
from segue.data.listing import Listing, Pair, images_in, pair_up
from segue.data.sample import IGNORE, Color, palette
from segue.errors import DataError

SPLITS = {"train": "training", "val": "validation", "test": "testing"}
VERSIONS = (("config_v2.0.json", "v2.0/labels"), ("config_v1.2.json", "v1.2/labels"), ("config.json", "labels"))


class Mapillary:
    """A config file, ``training/`` and ``validation/``."""

    @staticmethod
    def matches(root: Path) -> bool:
        """Whether a config file and the labels of its version are there."""
        return _version(root) is not None

    @staticmethod
    def read(root: Path) -> Listing:
        """The set in ``root``.

        Raises:
            DataError: the config file or the labels are missing, or the file is unsound.
        """
        version = _version(root)
        if version is None:
            raise DataError(f"{root} has no {' or '.join(name for name, _ in VERSIONS)} with labels: it is no Vistas")
        config, labels = version
        splits: dict[str, tuple[Pair, ...]] = {}
        stray: tuple[Path, ...] = ()
        faults: list[Finding] = []
        for split, name in SPLITS.items():
            if (root / name / "images").is_dir():
                masks = images_in(root / name / labels, faults) if (root / name / labels).is_dir() else {}
                pairs, left = pair_up(images_in(root / name / "images", faults), masks)
                splits[split] = tuple(Pair(f"{split}/{pair.name}", pair.image, pair.mask) for pair in pairs)
                stray += left
        entries = Entry.of(root / config).entries("labels")
        kept = [i for i, entry in enumerate(entries) if entry.flag("evaluate") is not False]
        if not 1 <= len(kept) <= IGNORE or len(entries) > IGNORE:
            raise DataError(f"{root / config} lists {len(kept)} labels to evaluate; 1 to {IGNORE} are possible")
        ids = dict.fromkeys(range(len(entries)), IGNORE) | {raw: i for i, raw in enumerate(kept)}
        return Listing(
            root=root,
            layout="mapillary",
            classes=_names([entries[i] for i in kept]),
            colors=_colors([entries[i] for i in kept]),
            splits=splits,
            ids=ids,
            stray=stray,
            things=tuple(ids[i] for i in kept if entries[i].flag("instances")),
            faults=tuple(faults),
        )


def _version(root: Path) -> tuple[str, str] | None:
    """Config file and label folder of the newest version that is there."""
    for config, labels in VERSIONS:
        if (root / config).is_file() and any((root / name / labels).is_dir() for name in SPLITS.values()):
            return config, labels
    return None


def _names(entries: list[Entry]) -> tuple[str, ...]:
    """Readable names; where two are equal, with the unique one behind."""
    short = [entry.text("readable") for entry in entries]
    twice = {name for name in short if short.count(name) > 1}
    names = tuple(
        f"{name} ({entry.text('name')})" if name in twice else name for name, entry in zip(short, entries, strict=True)
    )
    if len(set(names)) < len(names):
        raise DataError(f"{entries[0].where.partition(': ')[0]}: two labels have the same name")
    return names


def _colors(entries: list[Entry]) -> tuple[Color, ...]:
    """Colours as given, else told-apart ones."""
    return tuple(entry.color("color") or other for entry, other in zip(entries, palette(len(entries)), strict=True))
