"""Which images to label next: those that cover the set, or those a trained model is unsure of and that differ.

With d(i, j) the distance of the unit-length embeddings of images i and j, S the images chosen or labelled before,

    (1)  d_i  =  min_{j in S} d(i, j);    the next image is the one of largest d_i           k-center, greedy
    (2)  u_i  =  1/K sum_c  (uncertainty of image i on pixels taken for c)  /  (that of all images)
    (3)  the next image is the one of largest u_i d_i

(1) needs an encoder alone; Gonzalez, *Clustering to minimize the maximum intercluster distance*, 1985, shows that its
largest distance is at most twice the smallest possible. (2) counts each class alike, so that a rare one that is hardly
known weighs as much as a common one; the uncertainty of a pixel is the entropy of its prediction.
"""

import csv
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segue.data.finding import printable
from segue.data.labelling_files import labelme_file, offered_labels, write_cvat
from segue.data.listing import Pair
from segue.data.sample import Array, Tones, picture_size
from segue.data.tones import read_rgb
from segue.data.unlabelled import ImageSet
from segue.disk import whole, write_atomically
from segue.embeddings import centred, embed_images
from segue.errors import DataError
from segue.models.encoder import Encoder
from segue.prediction.pictures import predict
from segue.records import expecting, run_data
from segue.weights import Model

SIDE = 224  # pixels that images are squeezed into to be compared
DRAWS = 20  # random choices that coverage is compared with
COLUMNS, THUMB, CAPTION = 5, 240, 34  # of the contact sheet, pixels
SHOWN = 500  # images on it, at most: a JPEG ends at 65,535 rows


@dataclass(frozen=True)
class Chosen:
    """An image to label.

    Args:
        name: of the image.
        image: its file, whatever folder the list is read from.
        reason: why it was chosen, in words.
        distance: d_i of eq. 1 when it was chosen, in [0, 2]; None for the first where none was labelled before.
        stands_for: images that are nearest to it among all chosen and labelled ones.
        uncertainty: u_i of eq. 2, None without a trained model.
    """

    name: str
    image: str
    reason: str
    distance: float | None
    stands_for: int
    uncertainty: float | None


@dataclass(frozen=True)
class Suggestion:
    """What to label next.

    Args:
        chosen: in the order they were chosen.
        coverage: ``farthest`` and ``mean`` distance of an image to the nearest chosen or labelled one, and the same
            for random draws of the same size, on average.
        labelled: images of the set that have labels already, by their names.
        learnt_from: the set whose names those are.
        found: images that were looked at.
        classes: of the trained model; empty where there is none.
        tones: how the images become 8-bit, where they are deeper.
    """

    chosen: tuple[Chosen, ...]
    coverage: dict[str, float]
    labelled: int
    found: int
    classes: tuple[str, ...] = ()
    tones: Tones = ()
    learnt_from: str = ""

    def lines(self) -> list[str]:
        """What a person wants to know."""
        c = self.coverage
        rows = [printable(f"{i}. {one.name}: {one.reason}") for i, one in enumerate(self.chosen, 1)]
        if self.labelled and self.learnt_from:
            rows.append(printable(f"{self.labelled} count as labelled, by names among those of {self.learnt_from}"))
        return [
            *rows,
            f"coverage of {self.found} images by these {len(self.chosen)}"
            + (f" and the {self.labelled} labelled before" if self.labelled else "")
            + f": the farthest is {c['farthest']:.2f} from one of them, the mean {c['mean']:.2f}; "
            f"as many drawn at random: {c['random_farthest']:.2f} and {c['random_mean']:.2f} (mean of {DRAWS} draws)",
        ]


def class_uncertainty(model: Model, images: Sequence[Pair], tick: Callable[[], None]) -> Array:
    """Sums of the entropy of the pixels taken for each class: float64 (M, K)."""
    sums = np.zeros((len(images), len(model.spec.classes)))
    for i, found in enumerate(predict(model, images)):
        sums[i] = np.bincount(found.classes.ravel(), weights=found.uncertainty.ravel(), minlength=sums.shape[1])
        tick()
    return sums


def balanced(sums: Array) -> Array:
    """Eq. 2 before its sum: (M, K); the column of a class adds up to 1 / K, K counting those that were predicted."""
    totals = sums.sum(0)
    shares: Array = sums / np.where(totals > 0, totals, 1) / max(1, int((totals > 0).sum()))
    return shares


def farthest_first(
    points: Array, count: int, labelled: Sequence[int] = (), weights: Array | None = None
) -> list[tuple[int, float]]:
    """Eqs. 1 and 3: (place, distance when chosen) of ``count`` points, greedily; the distance is 2 where none was.

    Args:
        points: (M, D) of unit length.
        count: at most as many as there are points that are not labelled.
        labelled: places chosen before.
        weights: u of eq. 3, (M,); None takes eq. 1. Without labels the first is then the one nearest to the others.
    """
    distance, _ = nearest(points, labelled)
    free = np.ones(len(points), bool)
    free[list(labelled)] = False
    chosen: list[tuple[int, float]] = []

    def take(place: int) -> None:
        free[place] = False
        np.minimum(distance, np.linalg.norm(points - points[place], axis=1), out=distance)

    for _ in range(count):
        known = np.where(np.isfinite(distance), distance, 2.0)
        if weights is not None:
            worth = weights * known
        else:
            worth = known if np.isfinite(distance[0]) else points @ points.mean(0)
        best = int(np.where(free, worth, -np.inf).argmax())
        chosen.append((best, float(known[best])))
        take(best)
    return chosen


def nearest(points: Array, places: Sequence[int], before: Array | None = None) -> tuple[Array, Array]:
    """(distance of each point to the nearest of ``places``, which of them that is), both (M,).

    Args:
        points: (M, D) of unit length.
        places: of points.
        before: distances (M,) to others, which count as well; a point that is nearer to them gets -1.
    """
    found = np.full(len(points), np.inf) if before is None else before.copy()
    owner = np.full(len(points), -1)
    for number, place in enumerate(places):
        distance = np.linalg.norm(points - points[place], axis=1)
        owner[distance < found] = number
        np.minimum(found, distance, out=found)
    return found, owner


def coverage(points: Array, chosen: Sequence[int], before: Array | None = None) -> tuple[float, float]:
    """(largest, mean) distance of a point to the nearest of the chosen ones, and of those of ``before``."""
    found, _ = nearest(points, chosen, before)
    return float(found.max()), float(found.mean())


def _refuse_count(images: ImageSet, known: int, count: int) -> None:
    """Refuses to choose ``count`` where fewer are left."""
    left = len(images.images) - known
    if not left:
        raise DataError(
            f"{images.root}: the model learnt from all of its {known} images, or was validated on them; name others to "
            "choose from"
        )
    if not 1 <= count <= left:
        raise DataError(f"--n {count}: {images.root} holds {left} images without labels; give 1 to {left}")


def choose(
    images: ImageSet,
    encoder: Encoder,
    model: Model | None,
    count: int,
    *,
    labelled: Sequence[str] = (),
    learnt_from: str = "",
    seed: int = 0,
    tick: Callable[[], None] = lambda: None,
) -> Suggestion:
    """The images of a set to label next.

    Args:
        images: the set.
        encoder: compares them.
        model: trained to label pixels; None chooses by coverage alone.
        count: how many.
        labelled: names of images that have labels already: they are not chosen, and count as covered.
        learnt_from: the set whose names those are.
        seed: of the random draws that coverage is compared with.
        tick: called after each image is looked at; twice for each with a model.

    Raises:
        DataError: not so many images are left, they are all alike, or the model gives no numbers.
    """
    names = set(labelled)
    known = [i for i, pair in enumerate(images.images) if pair.name in names]
    _refuse_count(images, len(known), count)
    device = next(encoder.parameters()).device
    points = centred(
        embed_images(lambda x: encoder(x).mean((2, 3)), images.images, side=SIDE, batch=16, device=device, tick=tick)
    ).numpy(force=True)
    shares = None if model is None else balanced(class_uncertainty(model, images.images, tick))
    weights = None if shares is None else shares.sum(1)
    if weights is not None and not np.isfinite(weights).all():
        raise DataError("the model's predictions are no numbers; train it again with a lower --lr")
    chosen = farthest_first(points, count, known, weights)
    places = [place for place, _ in chosen]
    covered, _ = nearest(points, known)
    _, owner = nearest(points, places, covered)
    stands_for = np.bincount(owner + 1, minlength=len(places) + 1)[1:]
    rows: list[Chosen] = []
    for (place, distance), size in zip(chosen, stands_for.tolist(), strict=True):
        pair, is_first = images.images[place], not rows and not known
        reasons = [] if is_first else [f"{distance:.2f} from those before"]
        if shares is not None and model is not None:
            worst = int(shares[place].argmax())
            part = shares[place, worst] / max(shares[:, worst].sum(), 1e-30)
            reasons.insert(0, f"holds {part:.1%} of all doubt about {model.spec.classes[worst]}")
        reason = "; ".join([*(reasons or ["the most typical image"]), f"stands for {size}"])
        uncertainty = None if weights is None else float(weights[place])
        image = str(pair.image.absolute())
        rows.append(Chosen(pair.name, image, reason, None if is_first else distance, size, uncertainty))
    own, drawn = coverage(points, places, covered), _drawn(points, count, known, covered, seed)
    found = {"farthest": own[0], "mean": own[1], "random_farthest": drawn[0], "random_mean": drawn[1]}
    classes = () if model is None else tuple(model.spec.classes)
    return Suggestion(tuple(rows), found, len(known), len(images.images), classes, images.images[0].tones, learnt_from)


def _drawn(points: Array, count: int, known: Sequence[int], covered: Array, seed: int) -> tuple[float, float]:
    """`coverage` of random choices of as many beside the known ones, which are as far as ``covered``; on average."""
    generator = np.random.default_rng(seed)
    free = np.setdiff1d(np.arange(len(points)), known)
    found = [coverage(points, generator.choice(free, count, replace=False).tolist(), covered) for _ in range(DRAWS)]
    return float(np.mean([far for far, _ in found])), float(np.mean([mean for _, mean in found]))


# -- files -------------------------------------------------------------------------------------------------------------


def write_suggestion(suggestion: Suggestion, out: Path) -> list[str]:
    """Writes everything somebody who labels needs into ``out``; the files' names.

    ``chosen.txt`` (names, as ``segue train --labels`` takes them), ``suggestion.json`` and ``.csv`` (with reasons),
    ``contact.jpg`` (of the first `SHOWN`), and ``images.zip``: the images, a LabelMe file beside each, and CVAT's task
    ``annotations.xml``, in ``cvat/``: beside ``images/`` it would make a set of CVAT's of them.
    """
    out.mkdir(parents=True, exist_ok=True)
    chosen = suggestion.chosen
    write_atomically(out / "chosen.txt", "".join(f"{one.name}\n" for one in chosen).encode("utf-8", "surrogateescape"))
    write_atomically(out / "suggestion.json", json.dumps(asdict(suggestion), indent=1).encode())
    table = io.StringIO()
    writer = csv.DictWriter(table, list(asdict(chosen[0])))
    writer.writeheader()
    writer.writerows(asdict(one) for one in chosen)
    write_atomically(out / "suggestion.csv", table.getvalue().encode("utf-8", "backslashreplace"))
    with whole(out / "contact.jpg") as file:
        contact_sheet(chosen[:SHOWN], suggestion.tones).save(file, quality=88)
    with whole(out / "images.zip") as file:
        write_archive(suggestion, file)
    return ["chosen.txt", "suggestion.json", "suggestion.csv", "contact.jpg", "images.zip"]


def write_archive(suggestion: Suggestion, path: Path) -> None:
    """``images.zip`` of `write_suggestion`; file times that a zip cannot hold become its first or last."""
    stored = zipfile.ZIP_STORED  # pictures are compressed already
    with zipfile.ZipFile(path, "w", stored, strict_timestamps=False) as archive:
        sizes = [picture_size(Path(one.image)) for one in suggestion.chosen]
        for one, size in zip(suggestion.chosen, sizes, strict=True):
            image, name = Path(one.image), printable(one.name)
            archive.write(image, f"images/{name}{image.suffix}")
            archive.writestr(f"images/{name}.json", labelme_file(f"{Path(name).name}{image.suffix}", size))
        archive.writestr("labels.txt", "".join(f"{name}\n" for name in offered_labels(suggestion.classes)))
        names = [f"{one.name}{Path(one.image).suffix}" for one in suggestion.chosen]
        task = io.StringIO()
        write_cvat(task, suggestion.classes, [(name, size, ()) for name, size in zip(names, sizes, strict=True)])
        archive.writestr("cvat/annotations.xml", task.getvalue())


def contact_sheet(chosen: Sequence[Chosen], tones: Tones) -> Image.Image:
    """The chosen images side by side, numbered, with their names and the first reason."""
    tall = -(-len(chosen) // COLUMNS)
    columns = min(COLUMNS, len(chosen))
    cell = THUMB + CAPTION
    sheet = Image.new("RGB", (columns * (THUMB + 8) + 8, tall * (cell + 8) + 8), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for i, one in enumerate(chosen):
        picture = read_rgb(Path(one.image), tones)
        picture.thumbnail((THUMB, THUMB))
        x, y = 8 + i % COLUMNS * (THUMB + 8), 8 + i // COLUMNS * (cell + 8)
        sheet.paste(picture, (x + (THUMB - picture.width) // 2, y + (THUMB - picture.height) // 2))
        for line, text in enumerate((f"{i + 1}. {one.name}", one.reason.partition(";")[0])):
            draw.text((x, y + THUMB + 2 + 15 * line), printable(text)[:40], fill="black", font=font)
    return sheet


def labelled_names(run: str) -> tuple[tuple[str, ...], str]:
    """(names of the images whose labels a run learnt from or validated on, their set); nothing where it is no run's.

    Raises:
        DataError: the record of the run is damaged.
    """
    data = run_data(run)
    with expecting(Path(run) / "run.json", "the record of a run"):
        names = (*data.get("labelled_names", ()), *data.get("validation_names", ()))
        return tuple(map(str, names)), str(data.get("root", ""))
