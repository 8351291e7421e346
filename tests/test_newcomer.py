"""What somebody meets in their first hour is said in a line with what to do."""

import json
from pathlib import Path

import pytest
import timm
from conftest import write_set
from PIL import Image

from segue.data.check.domains import model_faults
from segue.data.layouts import open_listing
from segue.data.panoptic import Annotation
from segue.errors import DataError
from segue.starting import encoder_weights


def test_numbered_objects_without_a_class_that_has_any_are_refused(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set")
    described = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps({**described, "things": []}))
    listing = open_listing(str(root))
    pairs = listing.split("train")
    Annotation(listing).refuse_untold(pairs)  # nothing is numbered
    (root / "instances").mkdir(exist_ok=True)
    Image.new("I;16", (48, 48)).save(root / "instances" / f"{pairs[0].name}.png")
    with pytest.raises(DataError, match=r'give the ids .* in dataset.json, as "things": \[2\] for bar'):
        Annotation(listing).refuse_untold(pairs)


def test_weights_that_do_not_come_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no way to the hub\nand more lines")

    with pytest.raises(DataError, match=r"timm has no model 'mobilenetv2_10'; did you mean"):
        encoder_weights("timm:mobilenetv2_10", "test_resnet")
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(DataError, match=r"did not come \(no way to the hub\); give auto, random or a file$"):
        encoder_weights("timm:", "test_resnet")


@pytest.mark.parametrize(
    ("kind", "told"), [("segmenter", "--task semantic"), ("mask_classifier", "--out RUN"), ("compact", "")]
)
def test_a_new_class_is_taught_by_a_command_that_takes_the_model(tmp_path: Path, kind: str, told: str) -> None:
    listing = open_listing(str(write_set(tmp_path / "set")))
    (fault,) = model_faults(listing, "runs/x", listing.classes[:-1], kind)
    said = str(fault)
    assert said.rstrip().endswith(told)
    assert ("segue extend runs/x" in said) == bool(told)
