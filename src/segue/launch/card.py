"""The card of a model: ``README.md`` beside its weights, as a hub shows it. It names no path of the machine."""

import math
from pathlib import Path
from typing import Any

import yaml

from segue.data.finding import printable
from segue.disk import write_atomically
from segue.records import read_json, read_yaml
from segue.text import SCORES, percent

TASKS = {"mask_classifier": "panoptic segmentation", "encoder": "pre-training"}  # all other kinds are semantic


def write_card(out: Path) -> None:
    """Writes the card of the run in ``out`` from what it keeps; one that somebody else wrote is left alone.

    Raises:
        DataError: a record of the run is damaged.
    """
    path = out / "model" / "README.md"
    if not path.exists():
        write_atomically(path, card_of(out).encode())


def card_of(out: Path) -> str:
    """The card, in Markdown under YAML."""
    run = read_json(out / "run.json", "the record of a run")
    model = read_yaml(out / "model" / "model.yaml", "the description of a model")
    decided = out / "decision.json"
    decision = read_json(decided, "the decision of a run") if decided.is_file() else {}
    task, spec, identity = TASKS.get(model["kind"], "semantic segmentation"), model["spec"], run["identity"]
    scores = {name: value for name, value in model["metrics"].items() if math.isfinite(value)}
    parts = [
        _header(out.name, model, scores),
        f"# {printable(out.name)}",
        f"A model for {task}: {spec['encoder']}, trained with Segue "
        f"{run['versions']['segue']} by `{model['method']}` (`segue {identity['verb']}`).",
        *_classes(spec),
        *(
            [f"**Not for release:** {printable(str(decision.get('reason', '')))}"]
            if decision.get("release") is False
            else []
        ),
        _data(run["data"], identity["config"]),
        *_scores(scores, run["data"]),
        _use(model["kind"], spec["encoder"]),
        "## Limits\n\nMeasured on images like those it learnt from; on others, measure first: "
        "`segue evaluate hf:OWNER/NAME --data YOURS`. The terms of the training images hold for what is done with the "
        "model; add a licence.",
    ]
    return "\n\n".join(parts) + "\n"


def _header(name: str, model: dict[str, Any], scores: dict[str, float]) -> str:
    """What a hub reads."""
    shown = [
        {"type": key, "name": SCORES[key], "value": round(100 * scores[key], 2)} for key in SCORES if key in scores
    ]
    about: dict[str, Any] = {
        "library_name": "segue",
        "pipeline_tag": "image-feature-extraction" if model["kind"] == "encoder" else "image-segmentation",
        "tags": ["segue", model["method"], model["spec"]["encoder"]],
    }
    if shown:
        task, data = {"type": "image-segmentation"}, {"name": "validation images of the training set", "type": "own"}
        about["model-index"] = [{"name": name, "results": [{"task": task, "dataset": data, "metrics": shown}]}]
    return f"---\n{yaml.safe_dump(about, sort_keys=False, allow_unicode=True)}---"


def _classes(spec: dict[str, Any]) -> list[str]:
    """Its classes by id."""
    names = spec.get("classes", [])
    listed = ", ".join(f"{i} {printable(name)}" for i, name in enumerate(names))
    return [f"{len(names)} classes: {listed}."] if names else []


def _data(data: dict[str, Any], config: dict[str, Any]) -> str:
    """How much it learnt from."""
    counted = [f"{data[kind]} {kind}" for kind in ("labelled", "unlabelled") if data.get(kind)]
    told = f"{' and '.join(counted) or data.get('found', 0)} images, {config['steps']} steps"
    print_of = f"; fingerprint of the data `{data['fingerprint'][:16]}`" if data.get("fingerprint") else ""
    return f"## Training\n\n{told}{print_of}."


def _scores(scores: dict[str, float], data: dict[str, Any]) -> list[str]:
    """What was measured, in percent."""
    if not scores:
        return ["## Results\n\nNothing was measured: the run had no validation images."]
    own = {name: value for name, value in scores.items() if not name.endswith("_before")}  # of the model it extends
    rows = [f"| {_cell(SCORES.get(name, name))} | {percent(value)} |" for name, value in own.items()]
    told = f"On {data['validation']} validation images" if data.get("validation") else "On the validation images"
    if data.get("old_validation"):
        told += f" of the new classes' set and {data['old_validation']} of the old one"
    return [f"## Results\n\n{told}, in percent.\n\n| Measure | Value |\n|---|---|\n" + "\n".join(rows)]


def _cell(text: str) -> str:
    """Text in a cell of a table."""
    return printable(text).replace("|", "\\|")


def _use(kind: str, encoder: str) -> str:
    """How it is used."""
    if kind == "encoder":
        return f"## Use\n\n    segue train DATA --init hf:OWNER/NAME --encoder {encoder} --out RUN"
    return (
        "## Use\n\n    segue predict hf:OWNER/NAME photos/ --out predicted\n\n"
        'or in Python: `segue.predict("hf:OWNER/NAME", ["photo.jpg"])`.'
    )
