"""Two sets against each other, or a set against a model: are they different sets, and do their classes agree?"""

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from segue.data.check.facts import Facts
from segue.data.finding import Finding, argument, proposing
from segue.data.listing import Listing

SURE, LIKELY = 0.9, 0.6  # similarity of two names from which on they are taken to be one class, or perhaps one
SHARE = 10.0  # times a class's share of the pixels may differ between the domains before it is said

# Words of different data sets for one thing; the first of a row stands for all.
SAME = (
    ("sidewalk", "pavement", "footpath"),
    ("vegetation", "tree", "trees", "plant"),
    ("person", "pedestrian", "people", "human"),
    ("rider", "bicyclist", "cyclist"),
    ("traffic sign", "sign", "signsymbol", "sign symbol", "trafficsign"),
    ("traffic light", "trafficlight"),
    ("pole", "columnpole", "column pole"),
    ("motorcycle", "motorbike"),
    ("bicycle", "bike"),
    ("building", "house"),
    ("background", "void", "other"),
    ("nucleus", "nuclei", "cell nucleus"),
)


def plain(name: str) -> str:
    """A class name for comparing: lower case, words apart, one word for one thing."""
    words = re.sub(r"[\s_\-]+", " ", name).strip().lower()
    return next((row[0] for row in SAME if words in row), words)


def proposed_map(source: Sequence[str], target: Sequence[str]) -> dict[str, tuple[str, bool]]:
    """For each source class the target class it most likely is, or ``ignore``, and whether that is sure."""
    known = {plain(name): name for name in target}
    found = {}
    for name in source:
        close = difflib.get_close_matches(plain(name), known, n=1, cutoff=LIKELY)
        score = difflib.SequenceMatcher(None, plain(name), close[0]).ratio() if close else 0.0
        found[name] = (known[close[0]] if close else "ignore", score >= SURE)
    return found


def map_text(proposal: Mapping[str, tuple[str, bool]], source: str, target: str) -> str:
    """The proposal as ``maps.yaml``: one line a source class; unsure lines end in ``# ?``."""
    lines = [f"# classes of {source}: classes of {target}, or ignore. Lines with # ? are guesses: look at them."]
    for name, (other, sure) in proposal.items():
        lines.append(f"{_scalar(name)}: {_scalar(other)}" + ("" if sure else "  # ?"))
    return "\n".join(lines) + "\n"


def _scalar(name: str) -> str:
    """A name as YAML on one line: in quotes where it is more than words."""
    import yaml

    if re.fullmatch(r"[^\W_][\w./-]*( [\w./-]+)*", name):
        return name
    return yaml.safe_dump(name, default_style='"', allow_unicode=True, width=1 << 20).removesuffix("\n")


def domain_faults(source: Listing, target: Listing, source_facts: Facts, target_facts: Facts) -> list[Finding]:
    """E125 and W125: one set named twice, class lists that differ, shares of a class that differ a lot."""
    pair = f"{source.root} and {target.root}"
    ours = {p.image.resolve() for split in source.splits.values() for p in split}
    theirs = {p.image.resolve() for split in target.splits.values() for p in split}
    if ours & theirs:
        shared = tuple(map(str, sorted(ours & theirs)))
        return [
            Finding("E125", "source and target share images", shared, "There is nothing to adapt to.",
                    "Name two different sets, or two different splits: DIR:split.")
        ]  # fmt: skip
    if not target.classes:
        return []
    if source.classes != target.classes:
        return [
            Finding("E125", f"source has {len(source.classes)} classes, target {len(target.classes)} others", (pair,),
                    "A class would be learnt as another.",
                    f"Look at the proposed map, mend it, and give it: segue adapt --map FILE "
                    f"({proposing(source.root, target.root)} writes it)")
        ]  # fmt: skip
    found = []
    if source_facts.pixels.any() and target_facts.pixels.any():
        a, b = (facts.pixels / facts.pixels.sum() for facts in (source_facts, target_facts))
        far = np.flatnonzero((a > SHARE * b) | (b > SHARE * a))
        where = tuple(f"{source.classes[i]} ({100 * a[i]:.2f} % against {100 * b[i]:.2f} %)" for i in far)
        if where:
            found.append(
                Finding("W125", f"classes whose share of the pixels differs more than {SHARE:.0f} times", where,
                        "Adaptation pushes the target's shares towards the source's.",
                        "Balance the source, or watch these classes in the report.")
            )  # fmt: skip
    return found


EXTENDED = {"segmenter": " --task semantic", "mask_classifier": ""}  # how segue extend is told of each kind of model


def model_faults(listing: Listing, model: Path | str, classes: Sequence[str], kind: str) -> list[Finding]:
    """E132: a set whose classes are not those of a model of some kind, by name and order."""
    if tuple(classes) == listing.classes:
        return []
    where = (f"{listing.root} and {model}",)
    if sorted(classes) == sorted(listing.classes):
        first = next(i for i, (a, b) in enumerate(zip(classes, listing.classes, strict=True)) if a != b)
        order = ",".join(f"{i}:{list(classes).index(name)}" for i, name in enumerate(listing.classes))
        return [
            Finding("E132", f"the set has the model's classes in another order (id {first}: "
                    f"{listing.classes[first]!r} in the set, {classes[first]!r} in the model)", where,
                    "Every score would be of the wrong class.",
                    f"Put the class list in the model's order and map the ids: --map {order}")
        ]  # fmt: skip
    missing = [name for name in listing.classes if name not in classes]
    extra = [name for name in classes if name not in listing.classes]
    mend = "Name the classes as the model does, in its order, or train a model for this set."
    if missing and kind in EXTENDED:
        words = f"segue extend {argument(model)} --new {argument(listing.root)} --out RUN{EXTENDED[kind]}"
        mend = f"{mend} To teach it {', '.join(missing)}: {words}"
    what = f"only the set has {', '.join(missing) or 'none'}; only the model has {', '.join(extra) or 'none'}"
    return [
        Finding("E132", f"the set's classes are not the model's: {what}", where, "Ids would mean different things.",
                mend)
    ]  # fmt: skip
