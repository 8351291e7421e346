"""Prediction of many pictures over a Ray cluster: each worker holds the model and does what one process would do.

Pictures go out in batches. A batch whose worker dies goes out again, picture by picture, to a new worker; a picture
that costs `TRIES` workers their life has failed. What a worker wrote before it died stays and is passed over.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segue.data.listing import Pair
from segue.errors import DataError
from segue.models.mask_classifier import MaskClassifier
from segue.prediction.pictures import WHOLE, Account, How, Outputs, is_scene, write_predictions
from segue.weights import AnyModel, load_any

TRIES = 3  # workers that one picture may cost
BATCH = 16  # pictures that go out together


@dataclass(frozen=True)
class Work:
    """What is done with each picture; the folders are seen by every machine under the same names.

    Args:
        source: of the model: run or model folder, or ``hf:owner/name``.
        out: where the files go.
        outputs: of a semantic model; of a panoptic one only ``overlays`` counts.
        how: pictures go through a semantic model.
    """

    source: str
    out: Path
    outputs: Outputs = field(default_factory=Outputs)
    how: How = WHOLE


Write = Callable[[AnyModel, Sequence[Pair], Work], Account]


def write_batch(
    model: AnyModel, pairs: Sequence[Pair], work: Work, *, tick: Callable[[], None] = lambda: None
) -> Account:
    """All files of some pictures, in this process."""
    if isinstance(model, MaskClassifier):
        from segue.panoptic.prediction import write_panoptic

        return write_panoptic(model, pairs, work.out, overlays=work.outputs.overlays, tick=tick)
    return write_predictions(model, pairs, work.out, work.outputs, work.how, tick=tick)


def target(model: AnyModel, pair: Pair, work: Work) -> Path:
    """The file of a picture that is written last."""
    if isinstance(model, MaskClassifier):
        return work.out / "panoptic" / f"{pair.name}.png"
    suffix = ".tif" if is_scene(pair.image, work.how.largest) else ".png"
    return work.out / "labels" / f"{pair.name}{suffix}"


class Worker:
    """A process of the cluster with the model in its memory."""

    def __init__(self, work: Work, device: str, write: Write) -> None:
        from segue.processes.tuning import tune

        self.work, self.write = work, write
        tune(device)
        self.model = load_any(work.source, device=device)

    def predict(self, pairs: Sequence[Pair]) -> dict[str, str]:
        """Why some of the pictures failed, by path."""
        return self.write(self.model, pairs, self.work).failed


def over_cluster(
    ray: Any,
    model: AnyModel,
    pairs: Sequence[Pair],
    work: Work,
    *,
    device: str = "auto",
    batch: int = BATCH,
    write: Write = write_batch,
    tick: Callable[[], None] = lambda: None,
) -> Account:
    """`write_batch` of all pictures, spread over the processors or, where there are any, the GPUs of a cluster.

    Args:
        ray: the module, connected; see `segue.processes.cluster`.
        model: only looked at; workers load their own.
        pairs: the pictures.
        work: what is done with each.
        device: ``cpu`` leaves GPUs alone.
        batch: pictures that go out together.
        write: does it.
        tick: called once a picture.

    Raises:
        DataError: a machine of the cluster lacks Segue, or does not see the model or the folders.
    """
    account = Account()
    left: list[Pair] = []
    for pair in pairs:
        if target(model, pair, work).exists():
            account.there += 1
            tick()
        else:
            left.append(pair)
    waiting = deque((tuple(left[i : i + batch]), 0) for i in range(0, len(left), batch))  # 0 workers have died of them
    gpus = 0 if device == "cpu" else int(ray.cluster_resources().get("GPU", 0))
    kind = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0)(Worker)
    most = gpus or max(1, int(ray.cluster_resources().get("CPU", 1)))
    idle: list[Any] = []
    busy: dict[Any, tuple[Any, tuple[Pair, ...], int]] = {}
    while waiting or busy:
        while waiting and len(busy) < most:
            worker = idle.pop() if idle else kind.remote(work, "cuda" if gpus else "cpu", write)
            part, cost = waiting.popleft()
            busy[worker.predict.remote(list(part))] = worker, part, cost
        (done, *_), _ = ray.wait(list(busy))
        worker, part, cost = busy.pop(done)
        failed = _result(ray, done, work)
        if failed is None and cost + 1 < TRIES:
            waiting.extendleft(((pair,), cost + 1) for pair in reversed(part))
            continue
        if failed is None:
            why = f"{TRIES} workers died over it; is it larger than their memory?"
            failed = {str(pair.image): f"{pair.image}: {why}" for pair in part}
        else:
            idle.append(worker)
        _enter(account, model, part, work, failed)
        for _ in part:
            tick()
    return account


def _enter(account: Account, model: AnyModel, part: Sequence[Pair], work: Work, failed: dict[str, str]) -> None:
    """Enters what became of a batch.

    Raises:
        DataError: a worker wrote to a disk that is not seen here.
    """
    for pair in part:
        if str(pair.image) in failed:
            account.failed[str(pair.image)] = failed[str(pair.image)]
        elif target(model, pair, work).exists():
            account.written += 1
        else:
            raise DataError(
                f"a machine of the cluster has a {work.out} of its own; put --out on a disk that all of them share"
            )


def _result(ray: Any, reference: Any, work: Work) -> dict[str, str] | None:
    """Why pictures of a batch failed; None where the worker died.

    Raises:
        DataError: see `over_cluster`.
    """
    try:
        failed: dict[str, str] = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if "failed to import" in str(error) or "ModuleNotFoundError" in str(error):
            raise DataError(f"a machine of the cluster lacks this Segue: {str(error).splitlines()[-1]}") from None
        raise error.cause from None
    except ray.exceptions.ActorDiedError as error:
        if "__init__" in str(error):
            why = str(error).strip().splitlines()[-1]
            raise DataError(
                f"a machine of the cluster cannot load {work.source} ({why}); put it on a disk that all of them share"
            ) from None
        return None
    except ray.exceptions.RayError:
        return None
    return failed
