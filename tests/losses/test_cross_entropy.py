"""Cross-entropy of pixels: a loop, and nothing labelled."""

import pytest
import torch
from torch import Tensor

from segue.losses import pixel_cross_entropy


def test_cross_entropy_matches_a_loop_with_weights_and_ignored_pixels() -> None:
    torch.manual_seed(0)
    logits, mask = torch.randn(2, 3, 2, 2), torch.tensor([[[0, 1], [2, 255]], [[1, 1], [255, 0]]])
    weights = torch.tensor([1.0, 2.0, 0.5])
    total, mass = 0.0, 0.0
    for b, y, x in [(b, y, x) for b in range(2) for y in range(2) for x in range(2) if mask[b, y, x] != 255]:
        k = int(mask[b, y, x])
        total -= float(weights[k]) * float(logits[b, :, y, x].log_softmax(0)[k])
        mass += float(weights[k])
    torch.testing.assert_close(pixel_cross_entropy(logits, mask, class_weights=weights), torch.tensor(total / mass))
    expected = torch.nn.functional.cross_entropy(logits, mask, ignore_index=255)
    torch.testing.assert_close(pixel_cross_entropy(logits, mask.to(torch.uint8)), expected)


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2.0])])
def test_cross_entropy_of_nothing_labelled_is_zero_with_zero_gradient(weights: Tensor | None) -> None:
    logits = torch.randn(1, 2, 3, 3, requires_grad=True)
    loss = pixel_cross_entropy(logits, torch.full((1, 3, 3), 255), class_weights=weights)
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert logits.grad.abs().sum() == 0
