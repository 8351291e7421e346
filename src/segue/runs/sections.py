"""Parts of the report that a method writes itself: the page knows no method, and a new one needs no change there.

A method, or a verb when it concludes, calls `write_section`; the report shows every section of the run folder in the
order of its file names. A section is a title and blocks of seven kinds, each a plain dict:

    {"text": "one paragraph"}
    {"warning": "a paragraph that must not be missed"}
    {"table": {"head": ["Class", "IoU, %"], "rows": [["road", "91.2"]]}}
    {"lines": {"title": "credible share", "x": "step", "y": "%", "series": {"road": [[0, 12.5], [50, 80.0]]}}}
    {"pictures": [["panels/000.jpg", "what it shows"]]}      paths within the run folder, shown in rows
    {"points": {"title": "accuracy and time", "x": "ms", "y": "mIoU, %", "groups": {"teacher": [[310, 74.1, 350]]}}}
        (x, y) of each, and how far x reaches where that is known; x on a logarithmic scale
    {"graph": {"title": "the cell", "nodes": [["input", 0, 0], ["sum", 0, 1]], "edges": [[0, 1]]}}
        (name, column, row) of each node, rows from the top; an edge goes from one node's number to another's
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segue.disk import write_atomically
from segue.runs.folder import Run

KINDS = ("text", "warning", "table", "lines", "pictures", "points", "graph")
FOLDER = "sections"
HEADLINE = "headline.json"

Block = dict[str, Any]


def write_section(run: Run, name: str, title: str, blocks: Sequence[Block]) -> None:
    """Writes or replaces one section of the run's report.

    Args:
        run: whose report.
        name: of the file, as ``10_health``; sections are shown in its order.
        title: of the section.
        blocks: see this module.

    Raises:
        ValueError: a block of an unknown kind.
    """
    for block in blocks:
        if len(block) != 1 or next(iter(block)) not in KINDS:
            raise ValueError(f"a block of a section is one of {', '.join(KINDS)}, not {list(block)}")
    run.open()
    folder = run.out / FOLDER
    folder.mkdir(exist_ok=True)
    write_atomically(folder / f"{name}.json", json.dumps({"title": title, "blocks": list(blocks)}).encode())


def write_headline(run: Run, text: str, *, is_warning: bool = False) -> None:
    """What the report says first, in place of what it says of any training: one or two sentences."""
    run.open()
    (run.out / FOLDER).mkdir(exist_ok=True)
    content = json.dumps({"text": text, "is_warning": is_warning}).encode()
    write_atomically(run.out / FOLDER / HEADLINE, content)


def read_sections(out: Path) -> dict[str, dict[str, Any]]:
    """The sections of a run folder by name, in their order."""
    paths = sorted(path for path in (out / FOLDER).glob("*.json") if path.name != HEADLINE)
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def read_headline(out: Path) -> dict[str, Any] | None:
    """What `write_headline` wrote, or None."""
    path = out / FOLDER / HEADLINE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
