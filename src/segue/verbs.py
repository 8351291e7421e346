"""The verbs that train, as functions: what the command line and Python both call. A verb opens its data, says what it
understood, keeps the run folder, hands over to a method, and evaluates and saves what comes back. The verbs that use
a model are in `segue.using`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from segue import methods
from segue.adaptation import SOURCE_ONLY
from segue.adaptation import conclude as conclude_adaptation
from segue.config import Network, take_fields
from segue.data.copy_paste import learn
from segue.data.images import Whole
from segue.data.panoptic import Annotation, PanopticWhole
from segue.data.training import TrainingData, open_training
from segue.data.two_domains import DomainData, open_domains
from segue.data.unlabelled import open_image_set
from segue.errors import UsageError
from segue.evaluation import Measured, measure
from segue.extension import Extension, open_extension
from segue.forgetting import conclude, measure_extension
from segue.launch import Arm, launch, method_module
from segue.launch.seeds import with_seeds
from segue.panoptic.evaluation import measure_panoptic
from segue.panoptic.report import conclude_training
from segue.processes.surroundings import Surroundings, refuse_several
from segue.records import BASELINE
from segue.search.data import Compression, open_compression
from segue.search.report import conclude_compression
from segue.weights import describe

PANOPTIC = "mask_classification"  # the method of panoptic base models
PLAIN = ("supervised", PANOPTIC)  # methods that --compare has nothing to compare with
PRETRAINING = "ranking_distillation"
EXTENDS = {"incremental_panoptic": "panoptic", "incremental_semantic": "semantic"}  # what kind of model each needs


def config_from(verb: str, method: str, fields: Mapping[str, Any]) -> Any:
    """The ``Config`` of a method with the given fields.

    Raises:
        UsageError: the verb has no such method, the method no such field, or the field no such values.
    """
    return take_fields(method_module(method, verb).Config, fields, method)


def train(
    data: str,
    out: str | Path,
    *,
    method: str = "pixel_contrast",
    compare: bool = False,
    seed: int = 0,
    seeds: int = 1,
    device: str = "auto",
    precision: str = "auto",
    workers: int = -1,
    quiet: bool = False,
    shard: bool = False,
    log_to: Sequence[str] = (),
    **fields: Any,
) -> Path:
    """Trains a segmenter; the run folder.

    Args:
        data: folder of the labelled set, or ``FOLDER:split``.
        out: the run folder; a run of the same settings in it goes on where it stopped.
        method: one of ``segue.methods.names("train")``.
        compare: also train ``supervised`` with the same steps and seed, in ``out/baseline``.
        seed: of everything random.
        seeds: how many, from ``seed`` on; of several each has a folder in ``out``, beside ``seeds.html``.
        device: ``auto``, ``cpu``, ``cuda``.
        precision: ``auto``, ``fp32`` or ``bf16``.
        workers: processes that load data; -1 takes 0 on a CPU and 4 on a GPU.
        quiet: print nothing.
        shard: divide parameters, gradients and optimiser state over the processes that ``torchrun`` started.
        log_to: what the log is written to besides: ``tensorboard``, ``wandb``, ``mlflow`` (extra ``loggers``).
        fields: any field of the method's ``Config``, by its own name.

    Raises:
        DataError: a fault of the data.
        UsageError: an unknown method, field or device, or ``out`` holds something else.
    """
    around = Surroundings(
        seed=seed, device=device, precision=precision, workers=workers, quiet=quiet, shard=shard, log_to=log_to
    )
    config = config_from("train", method, {**fields, "data": data})
    return with_seeds(
        lambda folder, here: run_training(method, config, folder, here, compare=compare), Path(out), around, seeds
    )


def run_training(method: str, config: Any, out: Path, around: Surroundings, *, compare: bool) -> Path:
    """What `train` does, from a built config."""
    if compare and method in PLAIN:
        raise UsageError(f"--compare: {method} is itself the plain training; leave the option out")
    if method in PLAIN:
        refuse_ignored(method, config, "unlabeled", "ledger")

    @cache
    def open_data() -> TrainingData:
        if method != PANOPTIC:
            return open_training(config.data, seed=around.seed)
        data = open_training(replace(config.data, copy_paste=""), seed=around.seed)
        annotation = Annotation(data.listing, config.by_region)
        annotation.refuse_untold((*data.labelled, *data.val))
        wanted = config.data.copy_paste
        paste, pasted = learn(data.labelled, annotation.objects, data.classes, wanted, seed=around.seed)
        return replace(data, by_object=True, paste=paste, pasted=pasted)

    def arms(data: TrainingData) -> list[Arm[TrainingData]]:
        own = Arm(method, config, data, on_validation(data))
        if not compare:
            return [own]
        return [own, Arm("supervised", control(config), data, on_validation(data), BASELINE)]

    if method != PANOPTIC:
        return launch("train", config, out, around, method=method, open_data=open_data, arms=arms)

    def val() -> PanopticWhole:
        return PanopticWhole(open_data().val, Annotation(open_data().listing, config.by_region))

    def panoptic_arms(data: TrainingData) -> list[Arm[TrainingData]]:
        return [Arm(method, config, data, lambda model: measure_panoptic(model, val()) if data.val else None)]

    return launch(
        "train", config, out, around, method=method, open_data=open_data, arms=panoptic_arms,
        conclude=lambda run: conclude_training(run, val()),
    )  # fmt: skip


def pretrain(
    images: str,
    out: str | Path,
    *,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    workers: int = -1,
    quiet: bool = False,
    shard: bool = False,
    log_to: Sequence[str] = (),
    **fields: Any,
) -> Path:
    """Trains an encoder on images without labels; the run folder, which ``train`` takes as its ``init``.

    Args:
        images: their folder, or ``FOLDER:split``; masks in it are left alone.
        out: the run folder; a run of the same settings in it goes on where it stopped.
        seed, device, precision, workers, quiet, shard, log_to: as of `train`.
        fields: any field of the method's ``Config``, by its own name.

    Raises:
        DataError: a fault of the images.
        UsageError: an unknown field or device, or ``out`` holds something else.
    """
    around = Surroundings(
        seed=seed, device=device, precision=precision, workers=workers, quiet=quiet, shard=shard, log_to=log_to
    )
    return run_pretraining(config_from("pretrain", PRETRAINING, {**fields, "data": images}), Path(out), around)


def run_pretraining(config: Any, out: Path, around: Surroundings) -> Path:
    """What `pretrain` does, from a built config."""
    return launch(
        "pretrain", config, out, around, method=PRETRAINING, arms=lambda data: [Arm(PRETRAINING, config, data)],
        open_data=lambda: open_image_set(config.data, skip_bad=config.skip_bad),
    )  # fmt: skip


def refuse_ignored(who: str, config: Any, *names: str) -> None:
    """Refuses fields of the data that a method would ignore.

    Raises:
        UsageError: one of them was given.
    """
    for name in names:
        if getattr(config.data, name):
            raise UsageError(f"--{name.replace('_', '-')}: {who} makes no use of it; leave the option out")


def on_validation(data: TrainingData) -> Callable[[Any], Measured | None]:
    """Measures a model on the validation images, if there are any."""
    val = Whole(data.val, data.decoder)
    return lambda model: measure(model, val, data.classes) if data.val else None


def extend(
    model: str | Path,
    new: str,
    out: str | Path,
    *,
    keep_val: str = "",
    max_forget: float = 1.0,
    method: str = "incremental_panoptic",
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    workers: int = -1,
    quiet: bool = False,
    shard: bool = False,
    log_to: Sequence[str] = (),
    **fields: Any,
) -> Path:
    """Teaches a model new classes without its old data; the run folder.

    ``out/decision.json`` says whether the old classes were kept. The model that was extended is not touched.

    Args:
        model: run or model folder, or ``hf:owner/name``.
        new: folder of the set that shows the new classes, or ``FOLDER:split``.
        out: the run folder; a run of the same settings in it goes on where it stopped.
        keep_val: set with the old classes, on which forgetting is measured.
        max_forget: largest loss of the old classes' PQ or mIoU, in points, that is released.
        method: ``incremental_panoptic``, or ``incremental_semantic`` for a semantic model.
        seed: of everything random.
        device: ``auto``, ``cpu``, ``cuda``.
        precision: ``auto``, ``fp32`` or ``bf16``.
        workers: processes that load data; -1 takes 0 on a CPU and 4 on a GPU.
        quiet: print nothing.
        shard: divide parameters, gradients and optimiser state over the processes that ``torchrun`` started.
        log_to: as of `train`.
        fields: any field of the method's ``Config``, by its own name.

    Raises:
        DataError: no model, a fault of the data, or nothing new to learn.
        UsageError: an unknown method, field or device, or ``out`` holds something else.
    """
    around = Surroundings(
        seed=seed, device=device, precision=precision, workers=workers, quiet=quiet, shard=shard, log_to=log_to
    )
    given = {**fields, "model": str(model), "data": new, "keep_val": keep_val, "max_forget": max_forget}
    return run_extension(method, config_from("extend", method, given), Path(out), around)


def run_extension(method: str, config: Any, out: Path, around: Surroundings) -> Path:
    """What `extend` does, from a built config."""
    if config.data.unlabeled and not (config.pseudo and 0 < config.replay_share < 1):
        raise UsageError("--unlabeled: images of old scenes need --pseudo true and a --replay-share between 0 and 1")

    has = "panoptic" if describe(config.model)["kind"] == "mask_classifier" else "semantic"
    if EXTENDS.get(method, has) != has:
        raise UsageError(
            f"{config.model} is a {has} model and {method} extends {EXTENDS[method]} ones: add --task {has}"
        )

    def open_data() -> Extension:
        return open_extension(
            config.model, config.data, keep_val=config.keep_val, new_classes=config.new_classes,
            by_region=config.by_region, seed=around.seed,
        )  # fmt: skip

    def arms(data: Extension) -> list[Arm[Extension]]:
        return [Arm(method, config, data, lambda model: measure_extension(model, data))]

    return launch(
        "extend", config, out, around, method=method, arms=arms, open_data=open_data,
        conclude=lambda run: conclude(run, config.max_forget),
    )  # fmt: skip


def compress(
    teacher: str | Path,
    data: str,
    out: str | Path,
    *,
    method: str = "compact_search",
    compare: bool = False,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    workers: int = -1,
    quiet: bool = False,
    log_to: Sequence[str] = (),
    **fields: Any,
) -> Path:
    """Searches a small decoder under a teacher's guidance and trains it; the run folder.

    Args:
        teacher: run or model folder of a semantic model, or ``hf:owner/name``.
        data: folder of the labelled set, or ``FOLDER:split``.
        out: the run folder; a run of the same settings in it goes on where it stopped, candidates included.
        method: one of ``segue.methods.names("compress")``.
        compare: also train DeepLabV3+ on the same encoder with the same steps and seed, in ``out/baseline``.
        seed: of everything random.
        device: ``auto``, ``cpu``, ``cuda``.
        precision: ``auto``, ``fp32`` or ``bf16``.
        workers: processes that load data; -1 takes 0 on a CPU and 4 on a GPU.
        quiet: print nothing.
        log_to: as of `train`.
        fields: any field of the method's ``Config``, by its own name.

    Raises:
        DataError: no semantic teacher, other classes than its own, or a fault of the data.
        UsageError: an unknown method, field or device, or ``out`` holds something else.
    """
    around = Surroundings(seed=seed, device=device, precision=precision, workers=workers, quiet=quiet, log_to=log_to)
    config = config_from("compress", method, {**fields, "teacher": str(teacher), "data": data})
    return run_compression(method, config, Path(out), around, compare=compare)


def run_compression(method: str, config: Any, out: Path, around: Surroundings, *, compare: bool) -> Path:
    """What `compress` does, from a built config."""
    refuse_several("compress", "start it without torchrun, with --parallel or --ray for several")
    refuse_ignored(method, config, "unlabeled", "ledger")
    for name in ("decoder_channels", "output_stride"):
        if not compare and getattr(config.network, name) != getattr(Network(), name):
            raise UsageError(f"--{name} is of the DeepLabV3+ that --compare trains; give both or neither")
    opened = cache(lambda: open_compression(config.teacher, config.data, seed=around.seed))

    def arms(data: Compression) -> list[Arm[Any]]:
        own: Arm[Any] = Arm(method, config, data, on_validation(data.training))
        plain = Arm("supervised", control(config), data.training, on_validation(data.training), BASELINE)
        return [own, plain] if compare else [own]

    return launch(
        "compress", config, out, around, method=method, arms=arms, open_data=opened,
        conclude=lambda run: conclude_compression(run, opened(), config.search.target, config.search.threads),
    )  # fmt: skip


def adapt(
    source: str | Sequence[str],
    target: str,
    out: str | Path,
    *,
    val: str = "",
    method: str = "mean_teacher",
    seed: int = 0,
    seeds: int = 1,
    device: str = "auto",
    precision: str = "auto",
    workers: int = -1,
    quiet: bool = False,
    shard: bool = False,
    log_to: Sequence[str] = (),
    **fields: Any,
) -> Path:
    """Adapts to a domain without labels, beside a source-only training of as many steps; the run folder.

    ``out/decision.json`` says whether it helped, where ``val`` is given; if it harmed, ``out/model`` is the source-only
    model.

    Args:
        source: folder of the labelled set, or ``FOLDER:split``; or several.
        target: folder of images of the domain that matters, or ``FOLDER:split``.
        out: the run folder; a run of the same settings in it goes on where it stopped.
        val: labelled set of the target's domain, or ``FOLDER:split``.
        method: one of ``segue.methods.names("adapt")``.
        seed: of everything random.
        seeds: as of `train`.
        device: ``auto``, ``cpu``, ``cuda``.
        precision: ``auto``, ``fp32`` or ``bf16``.
        workers: processes that load data; -1 takes 0 on a CPU and 4 on a GPU.
        quiet: print nothing.
        shard: divide parameters, gradients and optimiser state over the processes that ``torchrun`` started.
        log_to: as of `train`.
        fields: any field of the method's ``Config``, by its own name.

    Raises:
        DataError: a fault of the data, or sets that do not fit each other.
        UsageError: an unknown method, field or device, or ``out`` holds something else.
    """
    around = Surroundings(
        seed=seed, device=device, precision=precision, workers=workers, quiet=quiet, shard=shard, log_to=log_to
    )
    sources = (source,) if isinstance(source, str) else tuple(source)
    config = config_from("adapt", method, {**fields, "source": sources, "target": target, "val": val})
    return with_seeds(lambda folder, here: run_adaptation(method, config, folder, here), Path(out), around, seeds)


def run_adaptation(method: str, config: Any, out: Path, around: Surroundings) -> Path:
    """What `adapt` does, from a built config."""
    module, domains = method_module(method, "adapt"), config.domains

    def arms(data: DomainData) -> list[Arm[DomainData]]:
        val = Whole(data.val, data.decoder)

        def on_target(model: Any) -> Measured | None:
            return measure(model, val, data.classes) if data.val else None

        plain = Arm(method, module.source_only(config), data, on_target, BASELINE, SOURCE_ONLY)
        return [plain, Arm(method, config, data, on_target)]

    return launch(
        "adapt", config, out, around, method=method, arms=arms,
        open_data=lambda: open_domains(domains, crop=config.views.crop),
        conclude=lambda run: conclude_adaptation(run, limit=domains.limit, class_limit=domains.class_limit),
    )  # fmt: skip


def control(config: Any) -> Any:
    """The plain training that a method is measured against: same data, network, views, steps and weights of classes,
    and what was given of its fine-tuning's learning rate and of its weight decay."""
    plain = methods.load("supervised").Config
    shared = {"data": config.data, "network": config.network, "views": config.views, "steps": config.steps}
    balance = getattr(config, "balance", "none")  # not every method has a loss that classes can be weighted in
    given = {
        own: getattr(config, name)
        for own, name in (("lr", "finetune_lr"), ("weight_decay", "weight_decay"))
        if getattr(config, name, None) != getattr(type(config), name, None)
    }
    return plain(**shared, balance=balance, evaluate_every=config.evaluate_every, **given)
