"""Whether training without labels goes well: numbers and pictures that need none, and what they say in words.

`look` measures student and teacher on a few of the user's own images; `verdict` says in plain words what is wrong;
`Watch` does both while training goes on, and `write_health` puts them into the report.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from segue.losses import ranking_loss
from segue.metrics import effective_rank, rank_agreement, spread
from segue.processes.ranks import rank_and_world
from segue.runs.folder import Run
from segue.runs.sections import Block, write_headline, write_section

METERS = {
    "spread": "Spread of the features, 0 to 1",
    "effective_rank": "Directions they use (effective rank)",
    "agreement": "Agreement of student and teacher, rank correlation",
    "ranking": "Ranking loss",
    "floor": "Ranking loss of a student like the teacher",
    "constant": "Ranking loss of a student to whom all is alike",
}
SHOWN, NEAREST = 3, 4  # images whose neighbours are shown, and how many of them
PANELS = "panels"
COLLAPSED = 0.02  # spread below which features are alike, whatever it was at the start
SHRUNK = 0.2  # share of what it was at the start below which spread or rank is a warning
APART = 0.3  # rank agreement of student and teacher below which they do not speak of the same


def look(student: Tensor, teacher: Tensor, *, tau: float, threshold: float) -> dict[str, float]:
    """Meters of one moment.

    Args:
        student: (K, N, D) unit-length patches of K images.
        teacher: of the same places.
        tau, threshold: of the ranking loss.

    Returns:
        ``spread`` of the student's patches in [0, 1], their ``effective_rank``, ``agreement`` with the teacher in the
        order of similarities, the ``ranking`` loss of each image with the next, its ``floor``, which is that of a
        student like the teacher, and ``constant``, that of a student to whom all patches are alike; all NaN where a
        patch is no number.
    """
    if not (student.isfinite().all() and teacher.isfinite().all()):
        return dict.fromkeys(METERS, math.nan)
    pairs = [x @ x.roll(-1, 0).transpose(1, 2) for x in (student.float(), teacher.float())]
    s, t = (pair.flatten(1) for pair in pairs)
    patches = student.flatten(0, 1)
    cost = {"ranking": s, "floor": t, "constant": torch.zeros_like(t)}
    return {
        "spread": spread(patches),
        "effective_rank": effective_rank(patches),
        "agreement": sum(rank_agreement(a, b) for a, b in zip(s, t, strict=True)) / len(s),
        **{name: float(ranking_loss(x, t, tau=tau, threshold=threshold)) for name, x in cost.items()},
    }


def verdict(now: Mapping[str, float], first: Mapping[str, float]) -> list[str]:
    """What is wrong, in plain sentences that say what to do; nothing where nothing is.

    Args:
        now: meters of `look`.
        first: the same before training.
    """
    if not all(math.isfinite(value) for value in now.values()):
        return ["The features are no numbers any more. Start again with a lower --lr, or with --precision fp32."]
    said = []
    if now["spread"] < max(COLLAPSED, SHRUNK * first["spread"]):
        said.append(
            f"The features collapse: their spread is {now['spread']:.3f}, {first['spread']:.3f} at the start; patches "
            "of different things look alike to this encoder. Start again with a lower --lr or a larger --tau-patch."
        )
    if now["effective_rank"] < max(2.0, SHRUNK * first["effective_rank"]):
        said.append(
            f"The features use {now['effective_rank']:.1f} directions, {first['effective_rank']:.1f} at the start: "
            "little can be told apart by them. Start again with a lower --lr, or stop earlier with fewer --steps."
        )
    if now["agreement"] < APART <= first["agreement"]:
        said.append(
            f"Student and teacher do not agree (rank correlation {now['agreement']:.2f}): the student follows "
            "something else than its soft labels. Start again with a lower --lr."
        )
    if now["ranking"] >= now["constant"]:
        said.append(
            f"Nothing is learnt: the ranking loss, {now['ranking']:.3f}, is no better than that of an encoder to which "
            f"all patches are alike, {now['constant']:.3f}. Raise --lr or --steps."
        )
    return said


def in_words(now: Mapping[str, float], first: Mapping[str, float]) -> str:
    """The meters on one line, and whether they are healthy."""
    wrong = verdict(now, first)
    return (
        f"spread {now['spread']:.2f}, effective rank {now['effective_rank']:.1f}, agreement with the teacher "
        f"{now['agreement']:.2f}, ranking loss {now['ranking']:.3f} (a student like the teacher {now['floor']:.3f}): "
        + (f"warning: {' '.join(wrong)}" if wrong else "healthy")
    )


class Watch:
    """Looks at student and teacher now and then: logs nothing itself, says what it sees and draws it."""

    def __init__(self, run: Run, *, tau: float, threshold: float) -> None:
        self.run, self.tau, self.threshold = run, tau, threshold

    def __call__(self, images: Tensor, student: Tensor, teacher: Tensor, *, step: int) -> dict[str, float]:
        """The meters of `look`; arguments as there, with the images uint8 (K, 3, H, W) the patches are of."""
        meters = look(student, teacher, tau=self.tau, threshold=self.threshold)
        side = math.isqrt(student.shape[1])
        if rank_and_world()[0] == 0:
            write_panels(self.run.out, step, images, student.cpu(), (side, side))
        first = next((seen for _, seen in history(self.run)), meters)
        self.run.say(f"health at step {step}: {in_words(meters, first)}")
        return meters


def write_panels(out: Path, step: int, images: Tensor, patches: Tensor, places: tuple[int, int]) -> None:
    """Pictures ``panels/STEP_i.jpg``: a patch of image i, framed, and beside it the nearest patches of other images.

    Args:
        out: the run folder.
        step: of the names.
        images: uint8 (K, 3, H, W).
        patches: (K, N, D) of unit length.
        places: rows and columns of the N patches.
    """
    (out / PANELS).mkdir(parents=True, exist_ok=True)
    rows, columns = places
    middle = rows // 2 * columns + columns // 2
    for i in range(min(SHOWN, len(images))):
        similarity = patches.float() @ patches[i, middle].float()  # (K, N)
        best = similarity.max(1)
        best.values[i] = -math.inf
        others = best.values.argsort(descending=True, stable=True)[: min(NEAREST, len(images) - 1)].tolist()
        shown = [(i, middle), *((k, int(best.indices[k])) for k in others)]
        strip = [_framed(images[k], place, places) for k, place in shown]
        Image.fromarray(np.concatenate(strip, 1)).save(out / PANELS / f"{step:07d}_{i}.jpg", quality=85)


def _framed(image: Tensor, place: int, places: tuple[int, int]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """The image with the patch at ``place`` framed, and a gap beside it: uint8 (H, W + gap, 3)."""
    picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
    row, column = divmod(place, places[1])
    down, across = picture.height / places[0], picture.width / places[1]
    box = (column * across, row * down, (column + 1) * across, (row + 1) * down)
    ImageDraw.Draw(picture).rectangle(box, outline=(255, 60, 0), width=max(1, picture.width // 80))
    return np.pad(np.array(picture), ((0, 0), (0, max(2, picture.width // 32)), (0, 0)), constant_values=255)


def history(run: Run) -> list[tuple[int, dict[str, float]]]:
    """(step, meters) of every look that was logged, oldest first; NaN for a meter that was not finite."""
    looks = [line for line in run.read_log() if not line.keys() & {"loss", "refused"}]
    return [(line["step"], {name: line.get(f"val/{name}", math.nan) for name in METERS}) for line in looks]


def write_health(run: Run, count: int) -> None:
    """The report's section on health, and its headline; ``count`` is the number of images learnt from."""
    seen = history(run)
    (_, first), (last, now) = seen[0], seen[-1]
    wrong = verdict(now, first)
    once = [(step, text) for step, meters in seen[1:-1] for text in verdict(meters, first)[:1]]
    done = f"The encoder learnt from {count} images without labels for {last} steps"
    if wrong:
        write_headline(run, f"{done}, and it went wrong. {wrong[0]}", is_warning=True)
    else:
        write_headline(run, f"{done}; no sign of collapse. Whether it serves your task only labels can tell.")
    head = ["", "At the start", "At the end"]
    blocks: list[Block] = [{"warning": text} for text in wrong]
    blocks += [{"warning": f"At step {step}: {text}"} for step, text in once[:1]]
    blocks.append({"text": "Measured on a few of the images as they are, without labels."})
    rows = [[title, f"{first[name]:.3f}", f"{now[name]:.3f}"] for name, title in METERS.items()]
    blocks.append({"table": {"head": head, "rows": rows}})
    for title, chosen in (
        ("feature spread", ["spread"]),
        ("effective rank", ["effective_rank"]),
        ("agreement with the teacher", ["agreement"]),
        ("ranking loss and its floor", ["ranking", "floor", "constant"]),
    ):
        series = {name: [[step, meters[name]] for step, meters in seen] for name in chosen}
        blocks.append({"lines": {"title": title, "x": "step", "y": title.split()[-1], "series": series}})
    write_section(run, "10_health", "Health", blocks)
    write_section(run, "20_neighbours", "Nearest patches over time", _panels(run.out, [step for step, _ in seen]))


def _panels(out: Path, steps: Sequence[int]) -> list[Block]:
    """Panels of the first, the middle and the last look."""
    chosen = list(dict.fromkeys((steps[0], steps[len(steps) // 2], steps[-1])))
    blocks: list[Block] = [
        {"text": "On the left a patch of one image, framed; beside it the patches of other images nearest to it. They "
                 "should come to show the same kind of thing."}
    ]  # fmt: skip
    for i in range(SHOWN):
        pictures = [[f"{PANELS}/{step:07d}_{i}.jpg", f"step {step}"] for step in chosen]
        pictures = [row for row in pictures if (out / row[0]).is_file()]
        blocks += [{"pictures": pictures}] if pictures else []
    return blocks
