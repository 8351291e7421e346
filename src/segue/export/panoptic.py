"""A panoptic model as an ONNX file, from the 8-bit picture to its segments, and the gate between the two."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segue.data.panoptic_map import PanopticMap
from segue.data.sample import Array
from segue.evaluation import Samples, none_for_nan
from segue.export.graph import INPUT, onnx_session, write_graph
from segue.export.parity import PROBES
from segue.models.mask_classifier import STRIDES, MaskClassifier
from segue.panoptic.evaluation import MASK, OVERLAP, SCORE, panoptic_map
from segue.panoptic.merging import segments
from segue.panoptic.quality import PanopticQuality

EXAMPLE = (1, 83, 117)
FREE = {
    INPUT: ("1", "height", "width"),
    "ids": ("1", "height", "width"),
    "labels": ("segments",),
    "scores": ("segments",),
}
# Whether a segment is there at all is decided by thresholds, so a rounding may take a whole one away: the limits are
# wider than for class maps.
REAL = 0.995  # share of the pixels of real pictures that must agree
NOISE = 0.95  # the same of noise
QUALITY = 0.98  # panoptic quality that the file must have with the model as truth
DROP = 0.5  # points of panoptic quality that may be lost where there are masks

Segment = Callable[[Array], PanopticMap]
"""A picture uint8 (H, W, bands) -> its segments."""


class ImageToSegments(nn.Module):
    """A panoptic model as it is used: uint8 (1, H, W, bands) -> ids int32 (1, H, W), labels (N,), scores (N,)."""

    is_thing: Tensor

    def __init__(self, network: MaskClassifier) -> None:
        super().__init__()
        self.network = network
        is_thing = [i in network.spec.things for i in range(len(network.spec.classes) + 1)]
        self.register_buffer("is_thing", torch.tensor(is_thing))
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Segment i + 1 of ``ids`` has class ``labels[i]``; 0 is none. By the thresholds of `panoptic_map`."""
        found = self.network(image.permute(0, 3, 1, 2))
        height, width = found.masks.shape[-2:]
        ids, labels, scores = segments(
            found.classes[0].float().softmax(1), found.masks[0], self.is_thing,
            size=(image.shape[1], image.shape[2]), padded=(STRIDES[0] * height, STRIDES[0] * width),
            score=SCORE, mask=MASK, overlap=OVERLAP,
        )  # fmt: skip
        return ids[None], labels, scores


def write_panoptic_onnx(model: MaskClassifier, path: Path, *, metadata: dict[str, Any]) -> None:
    """Writes the model as one ONNX file that takes one picture of any size at a time.

    Raises:
        UsageError: the extra ``export`` is not installed.
    """
    graph = ImageToSegments(model.cpu())
    with sized_by_the_picture(model):
        write_graph(graph, path, (*EXAMPLE, model.spec.in_channels), FREE, metadata=metadata)


@contextlib.contextmanager
def sized_by_the_picture(model: MaskClassifier) -> Iterator[None]:
    """While a graph is traced, transformers' points of reference are counted with ``arange``.

    They are made with ``linspace``, whose number of steps is written into a graph as it is for the example.
    """
    encoder: Any = model.decoder.encoder

    def points(spatial_shapes_list: Sequence[tuple[int, int]], valid_ratios: Tensor, device: torch.device) -> Tensor:
        levels = []
        for height, width in spatial_shapes_list:
            y = (torch.arange(height, dtype=valid_ratios.dtype, device=device) + 0.5) / height
            x = (torch.arange(width, dtype=valid_ratios.dtype, device=device) + 0.5) / width
            rows, columns = torch.meshgrid(y, x, indexing="ij")
            levels.append(torch.stack((columns.flatten(), rows.flatten()), -1))
        return torch.cat(levels)[None, :, None] * valid_ratios[:, None]

    encoder.get_reference_points = points
    try:
        yield
    finally:
        del encoder.get_reference_points


def onnx_segmenter(path: Path, *, threads: int = 0) -> Segment:
    """An ONNX file in ONNX Runtime on the CPU; ``threads`` 0 takes all cores.

    Raises:
        UsageError: the extra ``export`` is not installed.
    """
    session = onnx_session(path, threads=threads)

    def segment(image: Array) -> PanopticMap:
        ids, labels, scores = session.run(["ids", "labels", "scores"], {INPUT: np.ascontiguousarray(image[None])})
        return PanopticMap(ids[0], tuple(labels.tolist()), (False,) * len(labels), tuple(scores.tolist()))

    return segment


def torch_segmenter(model: MaskClassifier) -> Segment:
    """The model itself, as `segue predict` and `segue evaluate` run it."""
    model.eval()
    return lambda image: panoptic_map(model, torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1))


@dataclass(frozen=True)
class PanopticParity:
    """What the gate found.

    Args:
        images: real pictures compared.
        agreement: share of their pixels that have the same class and lie in segments that match.
        worst: the picture that agrees least, and its share.
        noise: the same share over pictures of noise of odd sizes.
        quality: panoptic quality of the file with the model as truth, NaN where it says nothing.
        before: panoptic quality of the model, in [0, 1]; NaN without masks.
        after: of the file.
        labelled: pictures with a mask.
        faults: which limits are broken, in words; empty where the gate passes.
    """

    images: int
    agreement: float
    worst: tuple[str, float]
    noise: float
    quality: float
    before: float
    after: float
    labelled: int
    faults: tuple[str, ...] = ()

    def line(self) -> str:
        """In words, for the person who waits."""
        truth = f", PQ on {self.labelled} labelled {100 * self.before:.1f} -> {100 * self.after:.1f}"
        return (
            f"{self.images} images: pixel agreement {100 * self.agreement:.2f} % (least {self.worst[0]}"
            f" {100 * self.worst[1]:.2f} %), odd sizes {100 * self.noise:.2f} %, PQ with the model as truth "
            f"{100 * self.quality:.1f}" + (truth if self.labelled else "")
        )

    def plain(self) -> dict[str, Any]:
        """Everything as JSON can hold it."""
        return {k: none_for_nan(v) if isinstance(v, float) else v for k, v in asdict(self).items()}


def same_pixels(expected: PanopticMap, found: PanopticMap) -> int:
    """Pixels that are void in both, or of one class in two segments that share most of either; 0 where sizes differ."""
    if expected.ids.shape != found.ids.shape:
        return 0
    columns = len(found.labels) + 1
    keys = expected.ids.astype(np.int64) * columns + found.ids
    shared = np.bincount(keys.ravel(), minlength=(len(expected.labels) + 1) * columns).reshape(-1, columns)
    union = shared.sum(1)[:, None] + shared.sum(0)[None] - shared
    is_match = 2 * shared > union  # no segment has two such partners
    is_match[0], is_match[:, 0] = False, False
    is_match[0, 0] = True
    is_match[1:, 1:] &= np.array(expected.labels)[:, None] == np.array(found.labels)[None]
    return int(shared[is_match].sum())


def compare_panoptic(model: Segment, file: Segment, data: Samples, *, classes: int, bands: int) -> PanopticParity:
    """Runs both over ``data`` and over noise, and holds the difference against the limits of this module."""
    with_model, before, after = PanopticQuality(classes), PanopticQuality(classes), PanopticQuality(classes)
    same = total = labelled = 0
    worst = ("", 2.0)
    for sample in (data[i] for i in range(len(data))):
        image = sample["image"].permute(1, 2, 0).numpy()
        expected, found = model(image), _or_nothing(file, image)
        equal = same_pixels(expected, found)
        same, total = same + equal, total + expected.ids.size
        worst = min(worst, (sample["name"], equal / expected.ids.size), key=lambda entry: entry[1])
        if expected.ids.shape != found.ids.shape:
            continue
        with_model.update(expected, found)
        if "truth" in sample:
            labelled += 1
            before.update(sample["truth"], expected)
            after.update(sample["truth"], found)
    parity = PanopticParity(
        len(data), same / max(total, 1), worst, _on_noise(model, file, bands), with_model.mean()["pq"],
        before.mean()["pq"], after.mean()["pq"], labelled,
    )  # fmt: skip
    return replace(parity, faults=_faults(parity))


def _on_noise(model: Segment, file: Segment, bands: int) -> float:
    """Share of equal pixels over noise of the sizes `PROBES`; 0 where a size does not run."""
    generator = np.random.default_rng(0)
    same = total = 0
    for height, width in PROBES:
        noise = generator.integers(0, 256, (height, width, bands), np.uint8)
        expected, found = model(noise), _or_nothing(file, noise)
        if expected.ids.shape != found.ids.shape:
            return 0.0
        same, total = same + same_pixels(expected, found), total + expected.ids.size
    return same / total


def _or_nothing(file: Segment, image: Array) -> PanopticMap:
    """What a file says; a map of no size where it does not run."""
    try:
        return file(image)
    except Exception:  # each runtime raises its own
        return PanopticMap(np.zeros((0, 0), np.int32), ())


def _faults(found: PanopticParity) -> tuple[str, ...]:
    """The limits that are broken; what neither says anything of breaks none."""
    faults = []
    if not found.agreement >= REAL:
        faults.append(f"{100 * found.agreement:.2f} % of the pixels agree, {100 * REAL:g} % must")
    if not found.noise >= NOISE:
        faults.append(f"{100 * found.noise:.2f} % agree on odd sizes, {100 * NOISE:g} % must")
    if found.quality < QUALITY:
        faults.append(f"PQ with the model as truth is {100 * found.quality:.1f}, {100 * QUALITY:g} is asked")
    if 100 * (found.before - found.after) > DROP:
        faults.append(f"PQ falls by {100 * (found.before - found.after):.1f} points, {DROP:g} are allowed")
    return tuple(faults)
