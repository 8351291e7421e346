"""Pixel contrast: numbers by hand and from the paper's released tests, the dense definitions, properties, memory."""

import math
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from dense_contrast import dense_pixel_contrast, dense_pixel_contrast_negatives
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from segue.losses import pixel_contrast, pixel_contrast_negatives

Loss = Callable[..., Tensor]
LOSSES = [pixel_contrast, pixel_contrast_negatives]
DENSE: list[tuple[Loss, Loss]] = [
    (pixel_contrast, dense_pixel_contrast),
    (pixel_contrast_negatives, dense_pixel_contrast_negatives),
]
FORMS = ["one_image", "exclude_self", "view", "images", "images_exclude_self", "view_images"]


def bag(form: str, count: int = 70, channels: int = 16, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Arguments of a loss: classes of uneven size, of one pixel, that only keys or anchors have; ignored pixels."""
    generator = torch.Generator().manual_seed(0)

    def embeddings(pixels: int) -> Tensor:
        x = torch.randn(pixels, channels, generator=generator)
        return F.normalize(x, dim=1).to(dtype).requires_grad_()

    def ids(pixels: int, most: int) -> Tensor:
        return (most * torch.rand(pixels, generator=generator) ** 1.5).long()

    labels, key_labels = ids(count, 6), ids(count + 20, 6)
    labels[labels == 3] = 255
    key_labels[key_labels == 4] = 255
    labels[0], key_labels[0] = 77, 78  # no key but itself, no anchor
    arguments: dict[str, Any] = {"anchors": embeddings(count), "labels": labels}
    if "view" in form:
        arguments |= {"keys": embeddings(count + 20), "key_labels": key_labels}
    if "images" in form:
        arguments["anchor_images"] = ids(count, 3) - 1
    if form == "view_images":
        arguments["key_images"] = ids(count + 20, 3) - 1
    if "exclude_self" in form:
        arguments["exclude_self"] = True
    return arguments


def gradients(loss: Tensor, arguments: dict[str, Any]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [arguments[name] for name in ("anchors", "keys") if name in arguments]))


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def released_bag() -> tuple[Tensor, Tensor]:
    """The input of the unit tests released with the paper: a pixel's embedding is its label, -2 and -1 are ignored."""
    labels = torch.tensor([-2, -2, -1, -1] + [1] * 4 + [2] * 4 + [3] * 4)
    return labels[:, None].float(), labels.where(labels > 0, 255)


def test_contrast_by_hand() -> None:
    embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    labels = torch.tensor([0, 0, 1])
    # Rows of z at t = 1: (1, 1, 0), (1, 1, 0), (0, 0, 1); each pixel is its own positive.
    expected = (2 * (math.log(2 * math.e + 1) - 1) + math.log(math.e + 2) - 1) / 3
    assert pixel_contrast(embeddings, labels, temperature=1).item() == pytest.approx(expected, rel=1e-6)
    # Negatives: one of z = 0 for the first two, two of z = 0 for the third.
    expected = (2 * math.log(1 + 1 / math.e) + math.log(1 + 2 / math.e)) / 3
    assert pixel_contrast_negatives(embeddings, labels, temperature=1).item() == pytest.approx(expected, rel=1e-6)


def test_contrast_without_the_self_pair_by_hand() -> None:
    embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    labels = torch.tensor([0, 0, 1])
    # The third has no positive left and is no anchor, but stays a negative of the others.
    loss = pixel_contrast(embeddings, labels, temperature=1, exclude_self=True)
    assert loss.item() == pytest.approx(math.log(math.e + 1) - 1, rel=1e-6)
    loss = pixel_contrast_negatives(embeddings, labels, temperature=1, exclude_self=True)
    assert loss.item() == pytest.approx(math.log(1 + 1 / math.e), rel=1e-6)


def test_negatives_of_another_image_do_not_count_by_hand() -> None:
    anchor, label, image = torch.tensor([[1.0, 0.0]]), torch.tensor([0]), torch.tensor([0])
    keys = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [0.0, 1.0]])
    key_labels = torch.tensor([0, 0, 1, 1])  # two positives, one of the other image; one negative of either image
    key_images = torch.tensor([0, 1, 0, 1])
    loss = pixel_contrast(anchor, label, keys, key_labels, anchor_images=image, key_images=key_images, temperature=1)
    assert loss.item() == pytest.approx(math.log(math.e + 2) - 1 / 2, rel=1e-6)
    loss = pixel_contrast_negatives(
        anchor, label, keys, key_labels, anchor_images=image, key_images=key_images, temperature=1
    )
    assert loss.item() == pytest.approx((math.log(1 + 1 / math.e) + math.log(2)) / 2, rel=1e-6)


def test_negatives_reproduces_the_released_constants() -> None:
    embeddings, labels = released_bag()
    within = pixel_contrast_negatives(embeddings, labels, temperature=1.0)
    assert within.item() == pytest.approx(2.4503216, abs=1e-5)
    cross = pixel_contrast_negatives(
        torch.cat([embeddings, 2 * embeddings]),
        torch.cat([labels, labels]),
        anchor_images=torch.tensor([0, 1]).repeat_interleave(16),
        temperature=1.0,
    )
    assert cross.item() == pytest.approx(5.46027374, abs=1e-5)


@pytest.mark.parametrize("temperature", [0.07, 0.01])  # 0.01: exp(1 / t) does not fit float32
@pytest.mark.parametrize("tile", [16, 256])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("loss", "dense"), DENSE)
def test_contrast_equals_its_definition(loss: Loss, dense: Loss, form: str, tile: int, temperature: float) -> None:
    arguments, precise = bag(form), bag(form, dtype=torch.float64)  # the same numbers
    found = loss(**arguments, temperature=temperature, tile=tile)
    expected = dense(**precise, temperature=temperature)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    for ours, theirs in zip(gradients(found, arguments), gradients(expected, precise), strict=True):
        assert relative(ours.double(), theirs) < 1e-6 * max(1, 0.03 / temperature)  # z itself is rounded at eps / t


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_those_of_the_value(loss: Loss, form: str) -> None:
    arguments = bag(form, count=11, channels=3, dtype=torch.float64)
    names = [name for name in ("anchors", "keys") if name in arguments]

    def value(*embeddings: Tensor) -> Tensor:
        return loss(**(arguments | dict(zip(names, embeddings, strict=True))), temperature=0.5, tile=4)

    assert torch.autograd.gradcheck(value, [arguments[name] for name in names])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("loss", LOSSES)
def test_order_of_pixels_does_not_matter(loss: Loss, form: str) -> None:
    arguments = bag(form)
    order = torch.randperm(len(arguments["labels"]), generator=torch.Generator().manual_seed(1))
    shuffled = {k: v[order] if k in ("anchors", "labels", "anchor_images") else v for k, v in arguments.items()}
    first, second = loss(**arguments, tile=16), loss(**shuffled, tile=16)
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(gradients(first, arguments)[0], gradients(second, arguments)[0])


@pytest.mark.parametrize("loss", LOSSES)
def test_ignored_pixels_are_as_good_as_absent(loss: Loss) -> None:
    arguments = bag("view_images")
    is_kept, is_kept_key = arguments["labels"] != 255, arguments["key_labels"] != 255
    kept = {k: v[is_kept_key if k.startswith("key") else is_kept] for k, v in arguments.items()}
    torch.testing.assert_close(loss(**arguments), loss(**kept))
    first, second = gradients(loss(**arguments), arguments), gradients(loss(**kept), arguments)
    for with_ignored, without in zip(first, second, strict=True):
        torch.testing.assert_close(with_ignored, without)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("loss", LOSSES)
def test_all_ignored_gives_zero_loss_and_gradient(loss: Loss, form: str) -> None:
    arguments = bag(form)
    value = loss(**(arguments | {"labels": torch.full_like(arguments["labels"], 255)}))
    assert value.item() == 0
    for gradient in gradients(value, arguments):
        assert gradient.abs().sum() == 0


@pytest.mark.parametrize("loss", LOSSES)
def test_keys_of_other_classes_alone_give_zero_loss_and_gradient(loss: Loss) -> None:
    arguments = bag("view")
    value = loss(**(arguments | {"key_labels": torch.full_like(arguments["key_labels"], 99)}))
    assert value.item() == 0
    for gradient in gradients(value, arguments):
        assert gradient.abs().sum() == 0


@pytest.mark.parametrize("temperature", [0.07, 0.01])
def test_one_class_costs_log_n_or_nothing(temperature: float) -> None:
    embeddings = F.normalize(torch.ones(8, 4), dim=1).requires_grad_()
    labels = torch.zeros(8, dtype=torch.long)
    assert pixel_contrast(embeddings, labels, temperature=temperature).item() == pytest.approx(math.log(8), abs=1e-4)
    loss = pixel_contrast_negatives(embeddings, labels, temperature=temperature)
    assert loss.item() == 0
    assert torch.autograd.grad(loss, embeddings)[0].abs().sum() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.07, 0.01])  # exp(1 / t) is 1.6e6 and 2.7e43; float16 ends at 6.5e4
@pytest.mark.parametrize("form", ["one_image", "view"])
@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_embeddings_are_computed_in_float32(
    loss: Loss, form: str, temperature: float, dtype: torch.dtype
) -> None:
    arguments = bag(form)
    half = {k: v.detach().to(dtype).requires_grad_() if k in ("anchors", "keys") else v for k, v in arguments.items()}
    full = {k: v.detach().float().requires_grad_() if k in ("anchors", "keys") else v for k, v in half.items()}
    expected = loss(**full, temperature=temperature)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(**half, temperature=temperature)
    assert value.dtype == torch.float32
    assert value.item() == expected.item()
    for ours, theirs in zip(gradients(value, half), gradients(expected, full), strict=True):
        assert ours.dtype == dtype
        assert relative(ours.float(), theirs) < 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("loss", LOSSES)
def test_low_precision_is_good_to_two_percent(loss: Loss, form: str) -> None:
    arguments = bag(form, count=400, channels=64)
    exact, low = loss(**arguments), loss(**arguments, low_precision=True)
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(exact.item(), rel=2e-3)
    for ours, theirs in zip(gradients(low, arguments), gradients(exact, arguments), strict=True):
        assert relative(ours, theirs) < 2e-2


def test_embeddings_longer_than_one_do_not_overflow() -> None:
    arguments = bag("one_image")
    longer = arguments | {"anchors": (30 * arguments["anchors"]).detach().double().requires_grad_()}
    for loss, dense in DENSE:
        expected = dense(**longer)
        longer_float = longer | {"anchors": longer["anchors"].detach().float().requires_grad_()}
        assert loss(**longer_float).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_frozen_view_gets_no_gradient_and_the_other_its_own(loss: Loss) -> None:
    arguments = bag("view")
    frozen = arguments | {"keys": arguments["keys"].detach()}
    both = torch.autograd.grad(loss(**arguments), arguments["anchors"])
    torch.testing.assert_close(torch.autograd.grad(loss(**frozen), arguments["anchors"]), both)


@pytest.mark.parametrize("loss", LOSSES)
def test_second_derivative_is_refused(loss: Loss) -> None:
    arguments = bag("one_image", count=8)
    with pytest.raises(RuntimeError, match="create_graph"):
        torch.autograd.grad(loss(**arguments), arguments["anchors"], create_graph=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": torch.ones(3, 16)}, "go together"),
        ({"key_images": torch.ones(70)}, "key_images"),
        ({"keys": torch.ones(3, 16), "key_labels": torch.ones(3), "anchor_images": torch.ones(70)}, "key_images"),
        ({"keys": torch.ones(3, 16), "key_labels": torch.ones(3), "exclude_self": True}, "exclude_self"),
        ({"keys": torch.ones(3, 8), "key_labels": torch.ones(3)}, r"\(3, 8\)"),
        ({"labels": torch.ones(69)}, "labels are"),
        ({"anchor_images": torch.ones(69)}, "anchor_images are"),
    ],
)
@pytest.mark.parametrize("loss", LOSSES)
def test_arguments_that_do_not_fit_are_named(loss: Loss, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss(**(bag("one_image") | change))


class LargestTensor(TorchDispatchMode):
    """The number of elements of the largest tensor any operation returned."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.size = max(self.size, result.untyped_storage().nbytes() // result.element_size())
        return result


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("loss", LOSSES)
def test_no_tensor_grows_with_the_square_of_the_pixels(loss: Loss, form: str) -> None:
    def largest(count: int) -> int:
        arguments = bag(form, count=count)
        with LargestTensor() as mode:
            loss(**arguments, tile=16).backward()
        return mode.size

    assert largest(600) < 2.2 * largest(300)
    assert largest(600) <= 620 * 16  # a block of 16 rows, or embeddings of 16 channels


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak memory of a Linux process")
def test_65_by_65_pixels_need_less_than_one_similarity_matrix() -> None:
    script = """
        import ctypes

        import torch
        from segue.losses import pixel_contrast

        def status(name):
            return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))

        torch.manual_seed(0)
        embeddings = torch.nn.functional.normalize(torch.randn(4225, 256), dim=1).requires_grad_()
        labels = torch.randint(0, 5, (4225,))
        pixel_contrast(embeddings[:512], labels[:512]).backward()
        ctypes.CDLL(None).malloc_trim(0)  # or freed memory that is still resident would be used again, uncounted
        open("/proc/self/clear_refs", "w").write("5")
        before = status("VmRSS")
        pixel_contrast(embeddings, labels).backward()
        print(status("VmHWM") - before)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert int(run.stdout) * 1024 < 4 * 4225**2  # the dense form holds four of them, written as above
