"""The gate between a model and its exported file: it passes what is the same and stops what is not."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw
from torch import nn

from segue.export.delivery import gated
from segue.export.graph import EXAMPLE, onnx_classifier, onnx_metadata, torch_classifier, write_onnx
from segue.export.parity import Limits, compare

pytest.importorskip("onnxruntime", reason="the extra export is not installed")
FLOAT = {"classes": 3, "bands": 3, "limits": Limits()}


class Brightest(nn.Module):
    """Class 0, 1 or 2 by the band that is brightest after shift and scale: every step of the preprocessing decides."""

    def __init__(self, mean: float = 100.0, scale: tuple[float, float, float] = (1.0, 0.7, 1.3)) -> None:
        super().__init__()
        self.mean = mean
        self.register_buffer("scale", torch.tensor(scale).reshape(1, 3, 1, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return (image.float() - self.mean) * self.scale


def pictures(masks: bool = True) -> list[dict[str, object]]:
    drawn = [draw(i, 41 + i) for i in range(3)]
    samples = [{"image": torch.from_numpy(i).permute(2, 0, 1), "name": str(n)} for n, (i, _) in enumerate(drawn)]
    return [{**s, "mask": torch.from_numpy(m)} for s, (_, m) in zip(samples, drawn, strict=True)] if masks else samples


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    write_onnx(Brightest(), path, metadata={"classes": ["a", "b"], "segue": "x"})
    return path


def test_a_file_takes_pictures_of_any_size_and_number_as_they_are(file: Path) -> None:
    run, model = onnx_classifier(file, threads=1), torch_classifier(Brightest())
    for shape in ((1, 1, 1), (3, 17, 40), (1, 400, 3), EXAMPLE):
        image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
        found = run(image)
        assert (found.dtype, found.shape) == (np.uint8, shape)
        np.testing.assert_array_equal(found, model(image))
    assert onnx_metadata(file) == {"classes": '["a", "b"]', "segue": "x"}


def test_the_file_itself_passes_with_every_pixel(file: Path) -> None:
    found = compare(torch_classifier(Brightest()), onnx_classifier(file, threads=1), pictures(), **FLOAT)
    assert (found.images, found.labelled, found.agreement, found.noise, found.faults) == (3, 3, 1.0, 1.0, ())
    assert found.before == found.after < 1


MUTANTS = {
    "mean forgotten": lambda x: np.clip(x.astype(int) + 60, 0, 255).astype(np.uint8),
    "bands swapped": lambda x: x[..., ::-1],
    "upside down": lambda x: x[:, ::-1],
    "scaled twice": lambda x: (x // 16).astype(np.uint8),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_wrong_preprocessing_fails_the_gate(file: Path, mutant: str) -> None:
    run = onnx_classifier(file, threads=1)
    found = compare(torch_classifier(Brightest()), lambda x: run(MUTANTS[mutant](x)), pictures(), **FLOAT)
    assert found.faults
    assert found.agreement < 0.999


def test_a_failed_file_is_deleted_and_a_good_one_takes_its_name(file: Path, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "out").mkdir()
    for name, mean, expected in (("good", 100.0, True), ("bad", 40.0, False)):
        candidate = tmp_path / "work" / f"{name}.onnx"
        candidate.write_bytes(file.read_bytes())
        reference, run = torch_classifier(Brightest(mean)), onnx_classifier(candidate, threads=1)
        found = gated(candidate, tmp_path / "out", compare(reference, run, pictures(), **FLOAT))
        assert found.is_kept == expected
    assert [path.name for path in tmp_path.rglob("*.onnx")] == ["good.onnx"]
    assert (tmp_path / "out" / "good.onnx").is_file()


def test_agreement_and_miou_by_hand() -> None:
    def file(image: np.ndarray) -> np.ndarray:  # one pixel of each picture is wrong
        found = torch_classifier(Brightest())(image)
        found[0, 0, 0] = (found[0, 0, 0] + 1) % 3
        return found

    pixels = sum((41 + i) ** 2 for i in range(3))
    found = compare(torch_classifier(Brightest()), file, pictures(masks=False), **FLOAT)
    assert found.agreement == pytest.approx(1 - 3 / pixels)
    assert found.worst == ("0", pytest.approx(1 - 1 / 41**2))
    assert (found.before, found.labelled) == (1.0, 0)  # without masks the model is the truth
    assert 0.98 < found.after < 1


def test_miou_is_over_the_pictures_that_have_a_truth() -> None:
    """The model is wrong everywhere on the one that has a mask, and is no truth for itself on the others."""
    samples = pictures(masks=False)
    wrong = (torch_classifier(Brightest())(samples[0]["image"].permute(1, 2, 0).numpy()[None])[0] + 1) % 3
    samples[0]["mask"] = torch.from_numpy(wrong.astype(np.uint8))
    found = compare(torch_classifier(Brightest()), torch_classifier(Brightest()), samples, **FLOAT)
    assert (found.before, found.after, found.labelled, found.faults) == (0.0, 0.0, 1, ())
    ignored = [{**s, "mask": torch.full(s["image"].shape[1:], 255, dtype=torch.uint8)} for s in pictures(masks=False)]
    found = compare(torch_classifier(Brightest()), torch_classifier(Brightest()), ignored, **FLOAT)
    assert (found.before, found.after, found.labelled, found.faults) == (1.0, 1.0, 0, ())


def test_a_file_that_stops_at_a_size_fails() -> None:
    def file(image: np.ndarray) -> np.ndarray:
        if image.shape[1] == 37:
            raise RuntimeError("only multiples of 16")
        return torch_classifier(Brightest())(image)

    assert compare(torch_classifier(Brightest()), file, pictures(), **FLOAT).noise == 0.0


def test_a_file_that_stops_at_a_real_picture_fails() -> None:
    def file(image: np.ndarray) -> np.ndarray:
        if image.shape[1] == 42:
            raise RuntimeError("only multiples of 16")
        return torch_classifier(Brightest())(image)

    found = compare(torch_classifier(Brightest()), file, pictures(), **FLOAT)
    assert (found.worst, found.noise) == (("1", 0.0), 1.0)
    assert len(found.faults) == 1


def test_points_of_miou_that_may_be_lost_are_a_limit_of_their_own() -> None:
    def file(image: np.ndarray) -> np.ndarray:
        return np.zeros(image.shape[:3], np.uint8)

    limits = Limits(agreement=0, noise=0, drop=1.0)
    found = compare(torch_classifier(Brightest()), file, pictures(masks=False), classes=3, bands=3, limits=limits)
    assert len(found.faults) == 1
    assert "mIoU falls by" in found.faults[0]
    generous = Limits(agreement=0, noise=0, drop=100.0)
    assert not compare(
        torch_classifier(Brightest()), file, pictures(masks=False), classes=3, bands=3, limits=generous
    ).faults
