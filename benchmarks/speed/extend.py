"""What an increment costs beside what it cannot do without.

    python benchmarks/speed/extend.py [--threads 1] [--rounds 5] [--part step quality loss] [--json FILE]

- ``step``: forward and backward of `IncrementalPanoptic` against the unavoidable passes: the current model's forward
  and backward with matching and losses on the very same segments (pseudo-labels among them, found beforehand), and one
  forward of the historic model. Goal: 1.15 x.
  Pseudo-labelling alone is a line of the same table, at 256 x 256 and 100 queries. Goal: 15 % of the step.
- ``quality``: one update of PQ at 512 x 1024 with 500 segments, against one ``np.unique`` of the pair key of the same
  two maps. Goal: 2 x.
- ``loss``: matching and point-sampled losses, forward and backward, of 7 layers, 100 queries, 15 segments an image, 2
  images, 12,544 points, against transformers' own on the same tensors. Goal: 0.6 x.

Sides of a comparison take turns in random order; a ratio is the median of the ratios of one round. CPU time of the
process, which other work on the machine disturbs least. Networks have random weights; so that the historic one has
something to say its class logits are stretched and no-object is raised until about a fifth of the queries say a class,
as of a trained model; the number of masks it says and of pseudo-labels kept is printed.
"""

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from segue.data.panoptic_map import PanopticMap
from segue.methods.incremental_panoptic import IncrementalPanoptic, Rules, historic_labels
from segue.models.mask_classifier import SIZES, MaskClassifier, MaskClassifierSpec, Queries, grown
from segue.panoptic.loss import Segments, mask_losses, true_segments
from segue.panoptic.quality import PanopticQuality

CLASSES = 20
NO_OBJECT = 9.0  # bias of its logit
RULES = Rules(
    min_ratio=0.02
)  # masks of random weights overlap more than those of a trained model: keep some all the same
Runs = dict[str, Callable[[], object]]


def compare(runs: Runs, base: str, rounds: int) -> dict[str, tuple[float, float]]:
    """(median CPU ms, median over rounds of the ratio to ``base``) of each run."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name in random.sample(list(runs), len(runs)):
            start = time.process_time()
            runs[name]()
            if turn:  # the first is a warm-up
                times[name].append(1000 * (time.process_time() - start))
    return {
        name: (
            statistics.median(found),
            statistics.median(a / b for a, b in zip(found, times[base], strict=True)),
        )
        for name, found in times.items()
    }


def method_and_batch(side: int, batch: int) -> tuple[IncrementalPanoptic, dict[str, torch.Tensor]]:
    """The method at the tiny preset with 100 queries, and images with two new objects each."""
    torch.manual_seed(0)
    numbers = {**SIZES["tiny"], "queries": 100}
    names, colors = tuple(f"class {i}" for i in range(CLASSES)), ((0, 0, 0),) * CLASSES
    base = MaskClassifier(MaskClassifierSpec("mobilenetv2_100", names, colors, tuple(range(10)), **numbers))
    with torch.no_grad():
        base.head.weight.mul_(6)
        base.head.bias[-1] = NO_OBJECT
    current = grown(base, ("new",), ((0, 0, 0),), (CLASSES,))
    method = IncrementalPanoptic(current, base, RULES, points=1024, pseudo=True, distill=10.0, gamma=2.0).train()
    images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8)
    segments = torch.zeros(batch, side, side, dtype=torch.int16)
    segments[:, 10:60, 20:80], segments[:, 100:140, 90:200] = 1, 2
    labels = torch.full((batch, 255), -1)
    labels[:, :2] = CLASSES
    known = torch.ones(batch, dtype=torch.bool)
    inside = torch.ones_like(segments, dtype=torch.bool)
    return method, {
        "image": images, "segments": segments, "labels": labels, "is_labelled": known, "inside": inside,
    }  # fmt: skip


def step_runs(side: int = 256, batch: int = 2) -> tuple[Runs, str]:
    """The whole step, its unavoidable passes, and pseudo-labelling alone; and what they work on in words."""
    method, data = method_and_batch(side, batch)
    truths = true_segments(data["segments"], data["labels"], (side, side))
    with torch.no_grad():
        old = method.historic(data["image"])

    every = method.credible(data["image"])

    def labels() -> list[Segments]:
        return [method._with_pseudo(old, b, truth, every[b], data["inside"][b]) for b, truth in enumerate(truths)]

    joined = labels()
    said = [
        int((historic_labels(old, b, t.masks > 0.5, every[b], data["inside"][b], RULES)[2] != 1).sum())
        for b, t in enumerate(truths)
    ]
    kept = [len(a.labels) - len(b.labels) for a, b in zip(joined, truths, strict=True)]

    def step() -> None:
        torch.manual_seed(1)
        torch.stack(list(method(data).values())).sum().backward()

    def passes() -> None:
        torch.manual_seed(1)
        layers = method.current.layers(data["image"])
        with torch.no_grad():
            method.historic(data["image"])
        torch.stack(list(mask_losses(layers, joined, points=1024).values())).sum().backward()

    told = f"{side} x {side}, {batch} images, 100 queries; old masks said {said}, kept {kept}"
    return {"unavoidable passes": passes, "increment step": step, "pseudo-labelling": labels}, told


def quality_runs() -> tuple[Runs, str]:
    """A PQ update and one ``np.unique``, on maps of 25 x 20 segments and a moved copy."""
    rows, columns = np.arange(512) * 20 // 512, np.arange(1024) * 25 // 1024
    ids = (rows[:, None] * 25 + columns[None] + 1).astype(np.int32)
    labels = tuple(int(i) for i in np.random.default_rng(0).integers(0, CLASSES, 500))
    truth, said = PanopticMap(ids, labels, (False,) * 500), PanopticMap(np.roll(ids, (3, 5), (0, 1)), labels)
    quality = PanopticQuality(CLASSES)
    runs: Runs = {
        "np.unique of the pair key": lambda: np.unique(truth.ids * np.int32(501) + said.ids, return_counts=True),
        "update of PQ": lambda: quality.update(truth, said),
    }
    return runs, "512 x 1024, 500 segments in truth and prediction"


def loss_runs() -> tuple[Runs, str]:
    """Our losses and transformers' on the same layers and segments."""
    from transformers import Mask2FormerConfig
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

    torch.manual_seed(0)
    layers = [
        Queries(torch.randn(2, 100, CLASSES + 1, requires_grad=True), torch.randn(2, 100, 64, 64, requires_grad=True))
        for _ in range(7)
    ]
    truths = [Segments(torch.randint(0, CLASSES, (15,)), torch.zeros(15, 256, 256)) for _ in range(2)]
    for truth in truths:
        for i in range(15):
            truth.masks[i, 16 * i : 16 * i + 40, 8 * i : 8 * i + 90] = 1
    config = Mask2FormerConfig(num_labels=CLASSES, num_queries=100, train_num_points=12544)
    theirs = Mask2FormerLoss(config, {"loss_cross_entropy": 2.0, "loss_mask": 5.0, "loss_dice": 5.0})

    def ours() -> None:
        torch.stack(list(mask_losses(layers, truths, points=12544).values())).sum().backward()

    def transformers() -> None:
        last, others = layers[-1], layers[:-1]
        auxiliary = [{"class_queries_logits": o.classes, "masks_queries_logits": o.masks} for o in others]
        found = theirs(last.masks, last.classes, [t.masks for t in truths], [t.labels for t in truths], auxiliary)
        sum(value for value in found.values()).backward()

    told = "7 layers, 2 images, 100 queries, 15 segments, 12,544 points"
    return {"transformers": transformers, "ours": ours}, told


PARTS: dict[str, tuple[Callable[[], tuple[Runs, str]], str]] = {
    "step": (step_runs, "unavoidable passes"),
    "quality": (quality_runs, "np.unique of the pair key"),
    "loss": (loss_runs, "transformers"),
}


def main() -> None:
    """Prints the tables and, if asked to, writes them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.full((4096,), 2.0).pow(0.9)  # torch's log1p is ten times slower until some pow has run: not what is compared
    print(f"torch {torch.__version__}, {platform.machine()}, {options.threads} threads, {options.rounds} rounds")
    written = {}
    for part in options.part:
        make, base = PARTS[part]
        runs, told = make()
        found = compare(runs, base, options.rounds)
        written[part] = {name: {"cpu_ms": cpu, "ratio": ratio} for name, (cpu, ratio) in found.items()}
        print(f"\n{part}: {told}")
        for name, (cpu, ratio) in found.items():
            print(f"  {name:<28}{cpu:>9.1f} CPU ms{ratio:>8.2f} x", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"torch": torch.__version__, **written}, indent=1) + "\n")


if __name__ == "__main__":
    main()
