"""The verbs that use a model, as functions: what the command line and Python both call."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from segue.data.decoder import Decoder
from segue.data.images import Whole
from segue.data.listing import Listing, Pair, toned
from segue.data.panoptic import Annotation, PanopticWhole
from segue.data.sample import IGNORE
from segue.data.unlabelled import open_image_set
from segue.errors import DataError, UsageError
from segue.evaluation import Measured, measure
from segue.held_out import masked, open_to_measure
from segue.models.mask_classifier import MaskClassifier
from segue.panoptic.evaluation import PanopticMeasured, measure_panoptic
from segue.panoptic.prediction import PanopticPrediction, predict_panoptic
from segue.prediction.pictures import Prediction, find_images
from segue.prediction.pictures import predict as run_over
from segue.processes.surroundings import pick_device, refuse_seed
from segue.processes.tuning import tune
from segue.progress import track
from segue.suggestion import Suggestion, choose, labelled_names
from segue.weights import describe, load_any, load_encoder, load_model


def evaluate(
    model: str | Path,
    data: str = "",
    *,
    split: str = "",
    layout: str = "auto",
    mapping: str = "",
    by_region: bool = False,
    device: str = "auto",
) -> Measured | PanopticMeasured:
    """Scores of a saved model, semantic or panoptic, on a labelled split.

    Args:
        model: a run or model folder, or ``hf:owner/name``.
        data: the set's folder, or ``FOLDER:split``; that of the run if absent. The run's own set is read as the run
            read it where nothing else is said.
        split: which part of it; if absent, see `segue.held_out.part_for`.
        layout: how the set lies on disk.
        mapping: stored mask values to map, as ``77:ignore``.
        by_region: connected regions are objects where the set numbers none; of panoptic models.
        device: ``auto``, ``cpu``, ``cuda``.

    Raises:
        DataError: no model, no such split, no masks, or classes that the model does not know.
        UsageError: ``by_region`` of a semantic model.
    """
    device = pick_device(device)
    tune(device)
    network = load_any(str(model), device=device)
    if by_region and not isinstance(network, MaskClassifier):
        raise UsageError("--by-region: a semantic model tells no objects apart; leave the option out")
    listing, name, pairs, was_by_region = open_to_measure(
        str(model), data, split=split, layout=layout, mapping=mapping, tones=network.spec.tones
    )
    pairs = masked(listing, name, pairs)
    if isinstance(network, MaskClassifier):
        found = measure_panoptic(network, panoptic_set(listing, network, str(model), pairs, by_region or was_by_region))
        return replace(found, split=name)
    known = {name: i for i, name in enumerate(network.spec.classes)}
    if listing.classes != network.spec.classes and not set(listing.classes) < known.keys():
        raise DataError(
            f"{model} knows the classes {', '.join(known)}; {listing.root} has {', '.join(listing.classes)}: "
            "the same names in the same order are needed, or some of them, as a set for segue extend has them"
        )
    decoder = Decoder.of(listing).onto({i: known[name] for i, name in enumerate(listing.classes)})
    return replace(measure(network, Whole(pairs, decoder), network.spec.classes), split=name)


def panoptic_set(
    listing: Listing, model: MaskClassifier, source: str, pairs: tuple[Pair, ...], by_region: bool
) -> PanopticWhole:
    """Pairs of a set for a panoptic model; classes are matched by name, and those that the model lacks are void.

    Raises:
        DataError: the set has none of the model's classes.
    """
    known = {name: i for i, name in enumerate(model.spec.classes)}
    places = {i: known.get(name, IGNORE) for i, name in enumerate(listing.classes)}
    if set(places.values()) == {IGNORE}:
        raise DataError(f"{listing.root} has none of the classes of {source} ({', '.join(known)})")
    return PanopticWhole(toned(pairs, model.spec.tones), Annotation(listing, by_region, places))


def predict(
    model: str | Path, images: str | Path | Sequence[str | Path], *, device: str = "auto"
) -> Iterator[Prediction] | Iterator[PanopticPrediction]:
    """What a saved model, semantic or panoptic, says of pictures, one at a time.

    Args:
        model: a run or model folder, or ``hf:owner/name``.
        images: files, folders or globs, or one of them.
        device: ``auto``, ``cpu``, ``cuda``.

    Raises:
        DataError: no model, no such picture, or one that cannot be read.
    """
    device = pick_device(device)
    tune(device)
    named = [images] if isinstance(images, str | Path) else images
    network, pairs = load_any(str(model), device=device), find_images([str(image) for image in named])
    return predict_panoptic(network, pairs) if isinstance(network, MaskClassifier) else run_over(network, pairs)


def suggest(
    images: str,
    model: str | Path,
    *,
    n: int = 30,
    skip_bad: bool = False,
    seed: int = 0,
    device: str = "auto",
    quiet: bool = True,
) -> Suggestion:
    """Which images of a folder to label next, and why.

    Args:
        images: their folder, or ``FOLDER:split``; masks in it are left alone, and so are the splits ``val`` and
            ``test`` of a data set, unless they are named.
        model: a run of ``pretrain`` (coverage alone) or ``train`` (coverage and doubt), or ``hf:owner/name``. What the
            run learnt from with labels or validated on counts as labelled.
        n: how many.
        skip_bad: go on without unreadable images.
        seed: of the random draws that coverage is compared with.
        device: ``auto``, ``cpu``, ``cuda``.
        quiet: print nothing.

    Raises:
        DataError: no model, no such images, or not so many are left without labels.
        UsageError: a seed that no generator takes.
    """
    refuse_seed(seed)
    device = pick_device(device)
    tune(device)
    encoder = load_encoder(str(model), device=device)
    found = open_image_set(images, skip_bad=skip_bad, tones=encoder.spec.tones)
    if not quiet:
        print("\n".join(found.lines()))  # noqa: T201
    trained = load_model(str(model), device=device) if describe(str(model))["kind"] != "encoder" else None
    names, learnt_from = labelled_names(str(model))
    with track("suggest", len(found.images) * (2 if trained else 1), quiet=quiet) as tick:
        return choose(
            found, encoder, trained, n, labelled=names, learnt_from=learnt_from, seed=seed, tick=tick
        )  # fmt: skip
