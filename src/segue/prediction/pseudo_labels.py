"""Labels that a network gives to images without any, where it is sure.

    y^_p  =  argmax_c P_c(p)   where   P_c(p) >= T_c,   ignored elsewhere

P_c is what the network says, or that divided by the share of the class among the labels it learnt from.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from segue.data.listing import Pair
from segue.data.sample import IGNORE, Array, write_label_map
from segue.disk import write_atomically
from segue.engine import Run, only_first
from segue.models.segmenter import Segmenter
from segue.prediction.pictures import predict

RAREST = 1e-3  # a share below it counts as it: a few pixels of a class must not make it likely everywhere


def pseudo_label(classes: Array, probability: Array, thresholds: Array) -> Array:
    """Eq. 5: class ids (H, W) and their probability (H, W) -> uint8 (H, W) with `IGNORE` below the threshold."""
    return np.where(probability >= thresholds[classes], classes, IGNORE).astype(np.uint8)


@contextmanager
def adjusted(network: Segmenter, shares: Array) -> Iterator[None]:
    """Inside, the probabilities of the network are P_c / pi_c, scaled to add up to 1.

    A class with a share pi_c of the labels is as likely then as if all classes had been labelled equally often (logit
    adjustment; Menon et al., *Long-tail learning via logit adjustment*, ICLR 2021).

    Args:
        network: whose classifier is changed, and put back.
        shares: pi, (K,); a share below `RAREST` counts as that, and a class without labels stays as it is.
    """
    bias = network.head.state_dict()["bias"]
    before = bias.clone()
    bias -= torch.from_numpy(np.log(np.where(shares > 0, np.maximum(shares, RAREST), 1.0))).to(bias)
    try:
        yield
    finally:
        bias.copy_(before)


def label_images(
    network: Segmenter, pairs: Sequence[Pair], thresholds: Array, shares: Array, run: Run
) -> tuple[Pair, ...]:
    """Pseudo-labels as pictures in ``pseudo_labels/`` of the run; what was kept goes to its ledger.

    Args:
        network: labels them.
        pairs: the images.
        thresholds: T, (K,).
        shares: pi of `adjusted`, (K,); ones leave the probabilities as they are.
        run: made once, and found again by a run that goes on.
    """
    folder, ledger = run.out / "pseudo_labels", run.out / "pseudo_labels.json"
    labelled = tuple(
        Pair(pair.name, pair.image, folder / f"{i:06d}.png", tones=pair.tones) for i, pair in enumerate(pairs)
    )

    def work() -> None:
        folder.mkdir(exist_ok=True)
        seen, kept = (np.zeros(len(thresholds), np.int64) for _ in range(2))
        images: dict[str, str] = {}
        left_out: list[str] = []
        for found, pair in zip(predict(network, pairs), labelled, strict=True):
            mask = pseudo_label(found.classes, found.probability, thresholds)
            name = Path(str(pair.mask)).name
            write_label_map(folder / name, mask, network.spec.colors)
            if (mask != IGNORE).any():
                images[name] = str(pair.image)
            else:
                left_out.append(str(pair.image))
            seen += np.bincount(found.classes.ravel(), minlength=len(seen))
            kept += np.bincount(mask[mask != IGNORE], minlength=len(kept))
        rows = {
            name: {"threshold": round(float(t), 4), "predicted": int(s), "kept": int(k)}
            for name, t, s, k in zip(network.spec.classes, thresholds, seen, kept, strict=True)
        }
        for name, row in rows.items():
            share = row["kept"] / max(row["predicted"], 1)
            run.say(f"pseudo-labels: {name}: {share:.0%} of its pixels kept at {row['threshold']}")
        run.say(
            f"pseudo-labels: {len(images)} of {len(labelled)} images used, {len(left_out)} left out with no pixel kept"
        )
        described = {"classes": rows, "images": images, "left_out": left_out}
        write_atomically(ledger, json.dumps(described, indent=1).encode())

    def once() -> None:
        if not ledger.is_file():
            with adjusted(network, shares):
                work()

    only_first(once)
    kept_images = json.loads(ledger.read_text(encoding="utf-8"))["images"]
    return tuple(pair for pair in labelled if pair.mask is not None and pair.mask.name in kept_images)
