"""What a check prints as the next command: pasted, training takes it."""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
from conftest import write_set
from PIL import Image

from segue.config import Data, build
from segue.data.training import open_training


def next_of(output: str) -> list[str]:
    (line,) = [line for line in output.splitlines() if "Next: " in line]
    return shlex.split(line.partition("Next: ")[2])


def test_the_next_command_keeps_the_options_of_the_check(tmp_path: Path, segue: Any) -> None:
    root = write_set(tmp_path / "my set", test=0)
    mask = root / "labels" / "train_000.png"
    Image.fromarray(np.where(np.array(Image.open(mask)) == 2, 77, 0).astype(np.uint8)).save(mask)
    (root / "labels" / "train_001.png").unlink()
    given = ["--layout", "folder", "--map", "77:ignore", "--allow-missing", "--skip-bad"]
    status, output, _ = segue("check", root, *given)
    assert status == 0
    words = next_of(output)
    assert words == ["segue", "train", str(root), "--out", "RUN", *given]
    fields = dict(zip(words[5:-2:2], words[6:-2:2], strict=True))
    config = {name.lstrip("-"): value for name, value in fields.items()}
    data = open_training(build(Data, {"data": words[2], **config, "allow_missing": True, "skip_bad": True}), seed=0)
    assert len(data.labelled) == 5
    assert next_of(segue("check", write_set(tmp_path / "plain"))[1])[3:] == ["--out", "RUN"]


def test_the_next_command_names_a_split_where_the_set_has_none_to_train_on(dataset: Path, segue: Any) -> None:
    described = json.loads((dataset / "dataset.json").read_text())
    del described["splits"]["train"]
    (dataset / "dataset.json").write_text(json.dumps(described))
    address = next_of(segue("check", dataset)[1])[2]
    assert address == f"{dataset}:val"
    assert open_training(Data(data=address), seed=0).val


def test_images_without_labels_that_are_skipped_are_skipped_next_too(tmp_path: Path, segue: Any) -> None:
    images = write_set(tmp_path / "set") / "images"
    (images / "train_000.png").write_text("no image")
    assert next_of(segue("check", images, "--skip-bad")[1])[3:6] == ["--out", "RUN", "--skip-bad,"]
