r"""Is an encoder better after pre-training without labels? Linear and k-NN dense probes, and training on few labels.

    python benchmarks/evidence/dense_probe.py data/camvid --out runs/probe [--steps 1000] [--few-steps 800]
    python benchmarks/evidence/dense_probe.py data/dsb2018 --out runs/nuclei --shrink 1 \
        --train fluorescence_train --split fluorescence_test

Arms: ``before`` (the weights as they came), ``norms`` (the same passes, but no weight moves: the statistics of batch
normalisation come to be those of these images), ``ranking`` (pre-trained by soft-label ranking) and ``mse`` (the same
steps, views, teacher and rates, but the similarities themselves are fitted). Pre-training sees the training split's
images alone, and none of their masks. Then, with the encoder frozen,

- linear: a 1 x 1 convolution is fitted to the classes of the cells of all labelled training images, by cross-entropy
  against the share of each class in a cell; its logits are upsampled bilinearly to the masks of the split;
- k-NN: each cell takes the vote of the 20 nearest of 8,000 training cells, by cosine, weighted by exp(cosine / 0.07).

mIoU is over the confusion matrix of the whole split. It depends on the resolution that masks are compared at, so that
is printed, and a second figure at masks of 100 pixels' width beside it; ``ceiling`` is what a probe would reach that
knew the share of each class in each cell. With ``--few-steps`` the same encoders also start a training on 5 % of the
labels. Everything is kept in --out: the script goes on where it stopped.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from shared import refuse_chance, segue, shrunk
from torch import Tensor

from segue.data.candidates import evenly
from segue.data.decoder import Decoder
from segue.data.images import Whole
from segue.data.layouts import open_listing
from segue.data.listing import Listing
from segue.data.sample import IGNORE
from segue.metrics import Confusion
from segue.models.encoder import Encoder, settle_statistics
from segue.starting import new_encoder
from segue.weights import load_encoder

ARMS: dict[str, tuple[str, ...]] = {  # what each adds to the command; nothing: no pre-training
    "before": (),
    "norms": ("--objective=ranking", "--lr=0"),
    "ranking": ("--objective=ranking",),
    "mse": ("--objective=mse",),
}
BANK, NEIGHBOURS, TEMPERATURE = 8000, 20, 0.07
SMALL_WIDTH = 100
PROBE_STEPS, PROBE_BATCH, PROBE_LR = 2000, 1024, 3e-3
FIGURES = ("linear", "linear_small", "knn", "few", "ceiling")


@torch.inference_mode()
def cells(encoder: Encoder, listing: Listing, split: str) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of each image: its map (C, h, w), the share of each class in each cell (K, h, w), and its mask (H, W)."""
    encoder.eval()
    found = []
    samples = Whole([pair for pair in listing.split(split) if pair.mask is not None], Decoder.of(listing))
    for i in range(len(samples)):
        sample = samples[i]
        feature, mask = encoder(sample["image"][None])[0], sample["mask"].long()
        height, width = (side * encoder.stride for side in feature.shape[1:])
        one_hot = F.one_hot(mask.where(mask != IGNORE, len(listing.classes)), len(listing.classes) + 1)
        one_hot = one_hot[..., :-1].permute(2, 0, 1).float()
        padded = F.pad(one_hot, (0, width - mask.shape[1], 0, height - mask.shape[0]))
        found.append((feature, F.avg_pool2d(padded[None], encoder.stride)[0], mask))
    return found


def rows(found: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Cells with a labelled pixel: features (N, C) and shares (N, K)."""
    features = torch.cat([feature.flatten(1).T for feature, _, _ in found])
    shares = torch.cat([share.flatten(1).T for _, share, _ in found])
    return features[shares.sum(1) > 0], shares[shares.sum(1) > 0]


def linear_probe(features: Tensor, shares: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Weight (K, C) and bias (K,) of the 1 x 1 convolution, for features as they are."""
    generator = torch.Generator().manual_seed(seed)
    mean_, deviation = features.mean(0), features.std(0).clamp(min=1e-6)
    scaled = (features - mean_) / deviation  # one learning rate then suits every encoder
    weight = torch.zeros(shares.shape[1], features.shape[1], requires_grad=True)
    bias = torch.zeros(shares.shape[1], requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], PROBE_LR)
    for step in range(PROBE_STEPS):
        chosen = torch.randint(len(scaled), (PROBE_BATCH,), generator=generator)
        optimizer.param_groups[0]["lr"] = PROBE_LR * 0.5 * (1 + np.cos(np.pi * step / PROBE_STEPS))
        optimizer.zero_grad()
        logits = scaled[chosen] @ weight.T + bias
        (-(shares[chosen] * logits.log_softmax(1)).sum(1).mean()).backward()
        optimizer.step()
    plain = weight.detach() / deviation
    return plain, bias.detach() - plain @ mean_


def miou(predictions: list[tuple[Tensor, Tensor]], classes: int, stride: int, width: int | None = None) -> float:
    """Mean IoU in per cent of scores (K, h, w), upsampled to masks (H, W), themselves made ``width`` wide if given."""
    confusion = Confusion(classes)
    for scores, mask in predictions:
        height_, width_ = (side * stride for side in scores.shape[1:])
        full = F.interpolate(scores[None], size=(height_, width_), mode="bilinear", align_corners=False)
        label = full[0, :, : mask.shape[0], : mask.shape[1]].argmax(0)
        if width is not None:
            size = (round(width * mask.shape[0] / mask.shape[1]), width)
            label, mask = (F.interpolate(x[None, None].double(), size=size)[0, 0].long() for x in (label, mask))
        confusion.update(mask.numpy(), label.numpy())
    return 100 * confusion.miou()


@torch.inference_mode()
def knn_scores(feature: Tensor, bank: Tensor, shares: Tensor) -> Tensor:
    """Votes (K, h, w) of the nearest of ``bank`` (N, C), of unit length, for each cell of a map (C, h, w)."""
    similarity = F.normalize(feature.flatten(1).T, dim=1) @ bank.T
    best = similarity.topk(NEIGHBOURS, dim=1)
    weights = (best.values / TEMPERATURE).softmax(1)
    return (weights[:, :, None] * shares[best.indices]).sum(1).T.reshape(-1, *feature.shape[1:])


def probe(encoder: Encoder, listing: Listing, train_split: str, split: str, seed: int) -> dict[str, float]:
    """The figures of a frozen encoder."""
    train, test = cells(encoder, listing, train_split), cells(encoder, listing, split)
    features, shares = rows(train)
    weight, bias = linear_probe(features, shares, seed)
    linear = [(torch.einsum("kc,chw->khw", weight, f) + bias[:, None, None], mask) for f, _, mask in test]
    chosen = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))[:BANK]
    bank, votes = F.normalize(features[chosen], dim=1), shares[chosen]
    nearest = [(knn_scores(f, bank, votes), mask) for f, _, mask in test]
    count = len(listing.classes)
    return {
        "linear": miou(linear, count, encoder.stride),
        "linear_small": miou(linear, count, encoder.stride, SMALL_WIDTH),
        "knn": miou(nearest, count, encoder.stride),
        "ceiling": miou([(share, mask) for _, share, mask in test], count, encoder.stride),
    }


def weights_before(options: argparse.Namespace, listing: Listing, seed: int) -> Encoder:
    """The encoder that pre-training with this seed starts from; random weights know the statistics of 64 images."""
    torch.manual_seed(seed)
    encoder = new_encoder(options.encoder, options.init, output_stride=16, say=print)
    if not encoder.is_pretrained:
        settle_statistics(encoder, evenly(listing.split(options.train), 64, 128))
    return encoder


def run_arm(data: Path, listing: Listing, options: argparse.Namespace, arm: str, seed: int, extra: list[str]) -> None:
    """Pre-trains, probes and trains on few labels, each unless it is done."""
    folder: Path = options.out / f"{arm}_{seed}"
    result, log = folder.with_suffix(".json"), folder.with_suffix(".log")
    figures: dict[str, float] = json.loads(result.read_text()) if result.is_file() else {}
    init = options.init
    if ARMS[arm]:
        if not (folder / "evaluation.json").is_file():
            fields = {
                "encoder": options.encoder,
                "init": init,
                "steps": options.steps,
                "crop": options.crop,
                "patience": 0,
            }
            given = [f"--{name}={value}" for name, value in fields.items()]
            given += [*extra, *ARMS[arm]]
            segue(log, "pretrain", f"{data}:{options.train}", "--out", folder, "--seed", seed, *given)
        init = str(folder)
    if "linear" not in figures:
        encoder = load_encoder(init) if ARMS[arm] else weights_before(options, listing, seed)
        figures |= probe(encoder, listing, options.train, options.split, seed)
        result.write_text(json.dumps(figures))
    if options.few_steps and "few" not in figures:
        trained = options.out / f"few_{arm}_{seed}"
        fields = {"encoder": options.encoder, "init": init, "steps": options.few_steps, "labels": "5%"}
        fields |= {"crop": options.few_crop, "lr": 0.03}
        if not (trained / "evaluation.json").is_file():
            given = [f"--{name}={value}" for name, value in fields.items()]
            segue(
                log,
                "train",
                data if options.train == "train" else f"{data}:{options.train}",
                "--method",
                "supervised",
                "--out",
                trained,
                "--seed",
                seed,
                *given,
            )
        told = segue(log, "evaluate", trained, "--data", data, "--split", options.split, "--json")
        figures["few"] = 100 * json.loads(told)["scores"]["miou"]
        result.write_text(json.dumps(figures))
    print(f"{arm} seed {seed}: " + ", ".join(f"{name} {value:.1f}" for name, value in figures.items()), flush=True)


def table(out: Path, arms: list[str], seeds: list[int]) -> str:
    """Mean and spread of each figure, and the mean of the paired differences to ``before``."""
    found: dict[str, list[dict[str, Any]]] = {
        arm: [json.loads((out / f"{arm}_{seed}.json").read_text()) for seed in seeds] for arm in arms
    }
    names = [name for name in FIGURES if all(name in figures for rows_ in found.values() for figures in rows_)]
    lines = [
        "| arm | " + " | ".join(f"{name} | difference" for name in names) + " |",
        "|---" * (1 + 2 * len(names)) + "|",
    ]
    for arm in arms:
        row = [arm]
        for name in names:
            values = [figures[name] for figures in found[arm]]
            row.append(f"{mean(values):.1f} ± {stdev(values) if len(values) > 1 else 0:.1f} ({len(values)})")
            paired = [v - b[name] for v, b in zip(values, found.get("before", []), strict=False)]
            row.append(f"{mean(paired):+.1f}" if paired and arm != "before" else "")
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def main() -> None:
    """Runs what is not done yet and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a canonical folder with the splits --train and --split")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shrink", type=int, default=2, help="divide the sides of images and masks")
    parser.add_argument("--encoder", default="mobilenetv2_100")
    parser.add_argument("--init", default="auto")
    parser.add_argument("--steps", type=int, default=1000, help="of pre-training")
    parser.add_argument("--crop", type=int, default=112, help="of pre-training")
    parser.add_argument("--few-steps", type=int, default=0, help="of training on 5 %% of the labels; 0: none")
    parser.add_argument("--few-crop", type=int, default=160)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--train", default="train", help="split to learn from, as fluorescence_train of DSB2018")
    parser.add_argument("--split", default="test", help="val while settings are chosen")
    parser.epilog = "Further fields of pre-training follow a --, as: -- --lr=0.0003 --batch=16"
    own, _, extra = " ".join(sys.argv[1:]).partition(" -- ")
    options = parser.parse_args(own.split())
    refuse_chance(options.init, options.encoder)
    options.out.mkdir(parents=True, exist_ok=True)
    data = shrunk(options.data, options.out / "data", options.shrink)
    listing = open_listing(str(data))
    first = Whole(listing.split(options.split), Decoder.of(listing))[0]["mask"]
    print(
        f"{options.split}: {len(listing.split(options.split))} masks of {first.shape[1]} x {first.shape[0]}; ", end=""
    )
    print(f"linear_small compares at a width of {SMALL_WIDTH}", flush=True)
    for seed in options.seeds:
        for arm in options.arms:
            run_arm(data, listing, options, arm, seed, extra.split())
    report = table(options.out, options.arms, options.seeds)
    (options.out / "table.md").write_text(report + "\n")
    print(report)


if __name__ == "__main__":
    main()
