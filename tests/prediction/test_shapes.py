"""Class maps as polygons: every tool that draws them gets the map back."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSES, write_model
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from segue.data.decoder import Decoder, mask_image
from segue.data.layouts import open_listing
from segue.data.outlines import Outline, draw
from segue.prediction.shapes import outlined

pytest.importorskip("rasterio", reason="the extra tiles is not installed")
Segue = Callable[..., tuple[int, str, str]]
MAPS = st.tuples(st.integers(1, 14), st.integers(1, 14)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 1, 1, 2, 255]))
)


def redrawn(labels: np.ndarray) -> np.ndarray:
    """The polygons, drawn as the readers of LabelMe and CVAT files draw."""
    outlines = [Outline(label, (polygon.ravel().tolist(),)) for label, polygon in outlined(labels)]
    return np.asarray(draw(labels.shape[::-1], outlines, 255))


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(MAPS)
def test_polygons_drawn_again_are_the_map(labels: np.ndarray) -> None:
    np.testing.assert_array_equal(redrawn(labels), labels)


def test_a_hole_is_reached_by_a_line_by_hand() -> None:
    labels = np.ones((5, 6), np.uint8)
    labels[2, 3] = 0
    found = dict(outlined(labels))
    assert found[0].tolist() == [[3, 2]] * 3  # one pixel
    around = found[1].tolist()
    corners = [[0, 0], [5, 0], [5, 4], [0, 4], [2, 1], [4, 1], [4, 3], [2, 3]]
    assert all(point in around for point in corners)
    # From the hole's first point, one pixel left and above of it, level to the left edge and back.
    i = around.index([0, 1])
    assert around[i + 1] == [2, 1]
    assert around.count([0, 1]) == around.count([2, 1]) == 2


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


def read_back(root: Path, layout: str) -> dict[str, np.ndarray]:
    """Class ids of a set's masks, by the order of `CLASSES`."""
    listing = open_listing(str(root), layout)
    places = np.array([255 if name == "background" else CLASSES.index(name) for name in listing.classes], np.uint8)
    decoder = Decoder.of(listing)
    pairs = [pair for pairs in listing.splits.values() for pair in pairs]
    return {p.name: places[decoder.known(np.asarray(mask_image(p)), p.mask)] for p in pairs if p.mask}


def test_files_for_labelme_and_cvat_read_as_sets_give_the_class_maps(
    segue: Segue, source: Path, dataset: Path, tmp_path: Path
) -> None:
    pytest.importorskip("datumaro", reason="the extra formats is not installed")
    out = tmp_path / "out"
    status, _, errors = segue("predict", source, dataset / "images", "--out", out, "--labelme", "--cvat")
    assert status == 0, errors
    expected = {path.stem: np.asarray(Image.open(path)) for path in (out / "labels").iterdir()}
    assert len(expected) == 10
    assert max(len(np.unique(labels)) for labels in expected.values()) > 1
    shutil.copytree(dataset / "images", out / "cvat" / "images")  # CVAT has the pictures of the task itself
    for layout in ("labelme", "cvat"):
        found = read_back(out / layout, layout)
        assert set(found) == set(expected)
        for name, labels in expected.items():
            np.testing.assert_array_equal(found[name], labels, err_msg=f"{layout} {name}")
    said = json.loads((out / "labelme" / "val_006.json").read_text())
    assert (said["imagePath"], said["imageHeight"], said["imageWidth"]) == ("val_006.png", 48, 48)
    assert (out / "labelme" / "labels.txt").read_text().split() == ["__ignore__", *CLASSES]
    assert open_listing(str(out / "labelme"), "labelme").classes == CLASSES  # and no background that none of them is


@pytest.mark.slow
def test_a_task_for_cvat_is_made_of_a_finished_folder_and_scenes_are_refused(
    segue: Segue, source: Path, dataset: Path, tmp_path: Path
) -> None:
    call = ("predict", source, dataset / "images", "--out", tmp_path / "out")
    assert segue(*call)[0] == 0
    status, output, _ = segue(*call, "--cvat", "--json")
    assert (status, json.loads(output)["there"]) == (0, 10)
    assert (tmp_path / "out" / "cvat" / "annotations.xml").read_text().count("<image ") == 10
    shutil.copy(next((dataset / "images").iterdir()), tmp_path / "later.png")
    assert segue("predict", source, tmp_path / "later.png", "--out", tmp_path / "out", "--cvat")[0] == 0
    assert (tmp_path / "out" / "cvat" / "annotations.xml").read_text().count("<image ") == 11  # none of them is lost
    Image.fromarray(np.zeros((3000, 1500, 3), np.uint8)).save(tmp_path / "large.tif")
    for option in ("--labelme", "--cvat"):
        status, _, errors = segue("predict", source, tmp_path / "large.tif", "--out", tmp_path / "other", option)
        assert (status, errors.count("\n")) == (2, 1)
        assert f"{option}: {tmp_path / 'large.tif'} is a scene" in errors
    assert not (tmp_path / "other").exists()
