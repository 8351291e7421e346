"""What compression learns from: a labelled set, and a teacher that knows its classes."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from segue.batches import mix
from segue.config import Data
from segue.data.copy_paste import CopyPaste, by_class, learn
from segue.data.listing import Pair
from segue.data.training import TrainingData, open_training
from segue.errors import DataError, UsageError
from segue.weights import Model, load_model, model_folder


@dataclass(frozen=True)
class Compression:
    """A set and the model whose knowledge goes into a smaller one.

    Args:
        training: the labelled set.
        teacher: a semantic model with the same classes, in evaluation mode.
        source: where the teacher came from.
    """

    training: TrainingData
    teacher: Model
    source: str

    def lines(self) -> list[str]:
        """What was understood, for a person."""
        size = sum(p.numel() for p in self.teacher.parameters()) / 1e6
        return [*self.training.lines(), f"teacher: {self.source} ({self.teacher.kind}, {size:.2f} million parameters)"]

    def account(self) -> dict[str, object]:
        """Of the labelled set."""
        return self.training.account()

    def files(self) -> Iterator[tuple[str, tuple[Path | None, ...]]]:
        """Everything trained on, and the teacher's weights."""
        yield from self.training.files()
        yield "teacher", (model_folder(self.source) / "model.safetensors",)


def divided(
    training: TrainingData, copy_paste: str, seed: int, most: int
) -> tuple[tuple[Pair, ...], tuple[Pair, ...], CopyPaste | None]:
    """What a search trains on, what it rewards by, and what it pastes, which comes of the former alone.

    Args:
        training: a set with at least 2 labelled images.
        copy_paste: classes whose objects are pasted; empty for none.
        seed: of which images are which.
        most: images of both parts together.
    """
    pairs = training.labelled
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(mix(seed, "meta"))).tolist()[:most]
    cut = max(1, round(0.1 * len(order)))
    held, kept = (tuple(pairs[i] for i in sorted(part)) for part in (order[:cut], order[cut:]))
    paste, _ = learn(kept, by_class(training.decoder), training.classes, copy_paste, seed=seed)
    return kept, held, paste


def open_compression(teacher: str, config: Data, *, seed: int) -> Compression:
    """Opens both.

    Raises:
        DataError: no such model, one that is not semantic, or classes that differ.
        UsageError: no teacher is named.
    """
    if not teacher:
        raise UsageError("no teacher named: segue compress TEACHER --data DATA --out RUN")
    model = load_model(teacher)
    if model.kind == "mask_classifier":
        raise DataError(f"{teacher} is a panoptic model; segue compress takes a semantic one as teacher")
    training = open_training(config, seed=seed, tones=model.spec.tones)
    if model.spec.classes != training.classes:
        raise DataError(
            f"{teacher} knows the classes {', '.join(model.spec.classes)}; {config.data} has "
            f"{', '.join(training.classes)}: a teacher needs the same names in the same order"
        )
    if len(training.classes) < 2:
        raise DataError(
            f"{config.data} has one class, {training.classes[0]}: every decoder is right everywhere, and no search can "
            "tell them apart; label what it is to be told from as a second class"
        )
    if len(training.labelled) < 2:
        raise DataError(f"{config.data}: the search divides the labelled images in two parts; it needs at least 2")
    return Compression(training, model, teacher)
