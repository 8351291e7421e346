"""Label-free numbers by hand, against loops, and what they say of a network that collapses."""

import math

import numpy as np
import pytest
import torch

from segue.data.sample import IGNORE
from segue.metrics import Confusion
from segue.watch import Look, Trust, watch

NAMES = ("a", "b", "c")


def scores(probabilities: torch.Tensor, credible: torch.Tensor, student: torch.Tensor, shares: list[float]):  # type: ignore[no-untyped-def]
    look = Look(probabilities.shape[1])
    look.update(probabilities, credible, student)
    return look.scores(NAMES, np.array(shares))


def test_by_hand() -> None:
    p = torch.tensor([[[[1.0, 0.5]], [[0.0, 0.5]], [[0.0, 0.0]]]])  # a for sure; a or b
    found = scores(p, torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0, 1]]]), [0.5, 0.25, 0.25])
    mean = [0.75, 0.25]
    assert found["entropy"] == pytest.approx(math.log(2) / 2 / math.log(3))
    average = -sum(v * math.log(v) for v in mean) / math.log(3)
    assert found["information"] == pytest.approx(average - found["entropy"])
    assert found["agreement"] == 0.5  # argmax takes the first of two equal classes
    assert found["drift"] == pytest.approx(0.5)  # all a, where the source has a half
    assert found["credible"] == found["credible/a"] == 0.5
    assert (found["share/a"], found["share/b"], found["share/c"]) == (1, 0, 0)
    assert "credible/b" not in found


def test_several_pictures_match_a_loop() -> None:
    torch.manual_seed(0)
    look, truth, total = Look(3), [0.0] * 3, 0
    for size in (4, 7):
        p, m = torch.randn(1, 3, size, 5).softmax(1), torch.rand(1, size, 5)
        student = torch.randint(0, 3, (1, size, 5))
        look.update(p, m, student)
        for y in range(size):
            for x in range(5):
                q = p[0, :, y, x]
                truth[0] += -sum(float(v) * math.log(float(v)) for v in q) / math.log(3)
                truth[1] += float(q.argmax() == student[0, y, x])
                truth[2] += float(m[0, y, x])
                total += 1
    found = look.scores(NAMES, np.full(3, 1 / 3))
    assert [found[name] for name in ("entropy", "agreement", "credible")] == pytest.approx([v / total for v in truth])
    weighed = sum(found[f"share/{n}"] * found[f"credible/{n}"] for n in NAMES)
    assert weighed == pytest.approx(found["credible"])


def test_a_collapse_is_sure_and_agrees_but_drifts_and_informs_of_nothing() -> None:
    torch.manual_seed(0)
    healthy = (8 * torch.randn(1, 3, 20, 20)).softmax(1)
    collapsed = torch.zeros(1, 3, 20, 20)
    collapsed[:, 1] = 1
    ones, shares = torch.ones(1, 20, 20), [1 / 3] * 3
    good, bad = (scores(p, ones, p.argmax(1), shares) for p in (healthy, collapsed))
    assert bad["entropy"] < good["entropy"]
    assert bad["agreement"] == good["agreement"] == 1
    assert bad["information"] == pytest.approx(0, abs=1e-9)
    assert good["information"] > 0.5
    assert bad["drift"] == pytest.approx(2 / 3)
    assert good["drift"] < 0.1


def test_trust_by_hand_and_ignored_pixels_do_not_count() -> None:
    trust = Trust(Confusion(3))
    mask = torch.tensor([[0, 1, 2, IGNORE]], dtype=torch.uint8)
    trust.update(torch.tensor([[0, 1, 0, 0]]), torch.tensor([[1.0, 0.25, 0.0, 1.0]]), mask)
    found = trust.scores()
    assert found["right_inside"] == pytest.approx(1.0)
    assert found["right_outside"] == pytest.approx(0.75 / 1.75)
    assert found["miou"] == pytest.approx((0.5 + 1 + 0) / 3)


def test_without_labels_no_accuracy_is_claimed() -> None:
    student = torch.nn.Conv2d(3, 3, 1)
    pictures = [{"image": torch.rand(3, 6, 5)}, {"image": torch.rand(3, 4, 8)}]

    def run(val: list[dict[str, torch.Tensor]]) -> dict[str, float]:
        ones = lambda p: torch.ones_like(p[:, 0])  # noqa: E731
        return watch(lambda x: student(x).softmax(1), ones, student, pictures, val, NAMES, np.full(3, 1 / 3))

    found = run([])
    assert found["agreement"] == 1
    assert not {"miou", "right_inside", "right_outside"} & set(found)
    labelled = run([{**pictures[0], "mask": torch.zeros(6, 5, dtype=torch.uint8)}])
    assert {"miou", "right_inside"} <= set(labelled)
    assert "right_outside" not in labelled  # all is credible
    assert {k: v for k, v in labelled.items() if k in found} == found
