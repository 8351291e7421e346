"""Labels that a network gives to images without any, where it is sure.

    y^_p  =  argmax_c P_c(p)   where   P_c(p) >= T_c,   ignored elsewhere

P_c is what the network says, or that divided by the share of the class among the labels it learnt from.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from segue.data.listing import Pair
from segue.data.sample import IGNORE, Array, write_label_map
from segue.disk import whole, write_atomically
from segue.engine import Run, only_first
from segue.models.segmenter import Segmenter
from segue.prediction.pictures import predict
from segue.progress import track

RAREST = 1e-3  # a share below it counts as it: a few pixels of a class must not make it likely everywhere
DONE = "done.jsonl"  # beside the pictures until all are there: name and counts of each that is


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
        run: made once, and found again by a run that goes on, be it in the midst of them.
    """
    folder, ledger = run.out / "pseudo_labels", run.out / "pseudo_labels.json"
    labelled = tuple(
        Pair(pair.name, pair.image, folder / f"{i:06d}.png", tones=pair.tones) for i, pair in enumerate(pairs)
    )

    def once() -> None:
        if not ledger.is_file():
            folder.mkdir(exist_ok=True)
            with track("pseudo-labels", len(labelled), quiet=run.console.quiet) as tick, adjusted(network, shares):
                counts = _write_pictures(network, labelled, folder, thresholds, tick)
            described = _described(network.spec.classes, labelled, thresholds, counts, run)
            write_atomically(ledger, json.dumps(described, indent=1).encode())
        (folder / DONE).unlink(missing_ok=True)

    only_first(once)
    kept_images = json.loads(ledger.read_text(encoding="utf-8"))["images"]
    return tuple(pair for pair in labelled if pair.mask is not None and pair.mask.name in kept_images)


def _write_pictures(
    network: Segmenter, pairs: Sequence[Pair], folder: Path, thresholds: Array, tick: Callable[[], None]
) -> Array:
    """Writes the pictures that are not there yet; pixels of each class in each, predicted and kept: int64 (M, 2, K).

    A picture is whole before its line in `DONE` is written, with which it is passed over.
    """
    names = [Path(str(pair.mask)).name for pair in pairs]
    done = _done(folder, len(thresholds))
    left = [(name, pair) for name, pair in zip(names, pairs, strict=True) if name not in done]
    for _ in range(len(pairs) - len(left)):
        tick()
    with (folder / DONE).open("a", encoding="utf-8") as file:
        for (name, _), found in zip(left, predict(network, [pair for _, pair in left]), strict=True):
            mask = pseudo_label(found.classes, found.probability, thresholds)
            with whole(folder / name) as path:
                write_label_map(path, mask, network.spec.colors)
            parts = (found.classes.ravel(), mask[mask != IGNORE])
            done[name] = [np.bincount(part, minlength=len(thresholds)).tolist() for part in parts]
            file.write(json.dumps([name, done[name]]) + "\n")
            file.flush()
            tick()
    return np.array([done[name] for name in names], np.int64).reshape(-1, 2, len(thresholds))


def _done(folder: Path, classes: int) -> dict[str, list[list[int]]]:
    """What `DONE` says of the pictures that are there; what a kill left in it behind them is taken out."""
    path, found, sound = folder / DONE, dict[str, list[list[int]]](), list[bytes]()
    for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else ():
        try:
            name, counts = json.loads(line)
            is_sound = line.endswith(b"\n") and np.shape(counts) == (2, classes) and (folder / name).is_file()
        except (ValueError, TypeError):
            is_sound = False
        if not is_sound:
            break
        found[name] = counts
        sound.append(line)
    write_atomically(path, b"".join(sound))
    return found


def _described(
    classes: Sequence[str], pairs: Sequence[Pair], thresholds: Array, counts: Array, run: Run
) -> dict[str, object]:
    """The ledger: pixels predicted and kept of each class, the images that are used and those left out; said too."""
    rows = {
        name: {"threshold": round(float(t), 4), "predicted": int(s), "kept": int(k)}
        for name, t, s, k in zip(classes, thresholds, *counts.sum(0), strict=True)
    }
    is_used = [bool(kept.any()) for _, kept in counts]
    images = {Path(str(p.mask)).name: str(p.image) for p, used in zip(pairs, is_used, strict=True) if used}
    left_out = [str(pair.image) for pair, used in zip(pairs, is_used, strict=True) if not used]
    for name, row in rows.items():
        share = row["kept"] / max(row["predicted"], 1)
        run.say(f"pseudo-labels: {name}: {share:.0%} of its pixels kept at {row['threshold']}")
    run.say(f"pseudo-labels: {len(images)} of {len(pairs)} images used, {len(left_out)} left out with no pixel kept")
    return {"classes": rows, "images": images, "left_out": left_out}
