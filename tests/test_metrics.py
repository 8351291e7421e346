"""Scores against numbers worked out by hand and against torchmetrics."""

import math

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassCalibrationError, MulticlassConfusionMatrix

from segue.metrics import BINS, Calibration, Confusion


def test_iou_by_hand_with_an_absent_class_and_ignored_pixels() -> None:
    confusion = Confusion(3)
    truth = np.array([[0, 0, 1, 1], [0, 255, 1, 255]], np.uint8)
    prediction = np.array([[0, 1, 1, 1], [0, 2, 2, 0]], np.uint8)
    confusion.update(truth, prediction)
    np.testing.assert_array_equal(confusion.counts, [[2, 1, 0], [0, 2, 1], [0, 0, 0]])
    np.testing.assert_allclose(confusion.iou(), [2 / 3, 2 / 4, np.nan])
    assert confusion.miou() == pytest.approx((2 / 3 + 1 / 2) / 2)  # over the two classes that are there
    assert confusion.accuracy() == pytest.approx(4 / 6)
    np.testing.assert_allclose(confusion.class_accuracy(), [2 / 3, 2 / 3, np.nan])


def test_confusion_equals_torchmetrics_on_random_maps() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = Confusion(7), MulticlassConfusionMatrix(7, ignore_index=255)
    for _ in range(3):
        truth = rng.choice([0, 1, 2, 3, 4, 5, 6, 255], (40, 50)).astype(np.uint8)
        prediction = rng.integers(0, 7, (40, 50)).astype(np.uint8)
        ours.update(truth, prediction)
        theirs.update(torch.from_numpy(prediction.astype(int)), torch.from_numpy(truth.astype(int)))
    np.testing.assert_array_equal(ours.counts, theirs.compute().numpy())


def test_nothing_labelled_gives_nan_and_no_warning() -> None:
    confusion = Confusion(2)
    confusion.update(np.full((2, 2), 255, np.uint8), np.zeros((2, 2), np.uint8))
    assert math.isnan(confusion.miou())
    assert math.isnan(confusion.accuracy())
    assert math.isnan(Calibration().ece())


def test_sizes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in size"):
        Confusion(2).update(np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8))


def test_calibration_error_by_hand_and_by_torchmetrics() -> None:
    ours = Calibration()
    truth = torch.tensor([[0, 0, 0, 255]])
    ours.update(truth, torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0.91, 0.91, 0.91, 0.2]]))
    assert ours.ece() == pytest.approx(0.91 - 2 / 3, abs=1e-6)  # one bin: said 0.91, right two times of three
    torch.manual_seed(0)
    logits, target = torch.randn(1, 4, 30, 30), torch.randint(0, 4, (30, 30))
    probabilities, prediction = logits.softmax(1).max(1)
    calibration = Calibration()
    calibration.update(target, prediction[0], probabilities[0])
    theirs = MulticlassCalibrationError(4, n_bins=BINS)(
        logits.softmax(1).permute(0, 2, 3, 1).reshape(-1, 4), target.flatten()
    )
    assert calibration.ece() == pytest.approx(float(theirs), abs=1e-5)
