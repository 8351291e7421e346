"""The one training loop: a method, its batches, and a run folder that can be cut at any step and resumed bit for bit.

Everything random is a function of (seed, stage, step, index): `endless` seeds each sample, `fit` seeds each step. So a
checkpoint holds no random state, and neither the number of workers nor a restart changes what a run computes.
"""

import contextlib
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from segue.batches import count, counts, endless, mix, names_of, split, to_device
from segue.models.held import hold_statistics, hold_still
from segue.processes.memory import bytes_to_come
from segue.processes.ranks import (
    RankError,
    added_up,
    all_agree,
    as_on_first,
    bound_to_others,
    largest,
    only_first,
    rank_and_world,
    wait_for_all,
)
from segue.processes.signals import Preempted, Signals
from segue.processes.tuning import slow_layers_in_float32
from segue.progress import StageBar
from segue.runs.folder import Run

if TYPE_CHECKING:
    from segue.processes.sharded_state import Shards

__all__ = [
    "Losses",
    "Method",
    "Run",
    "cosine",
    "ema_update",
    "endless",
    "fit",
    "hold_statistics",
    "hold_still",
    "mix",
    "only_first",
    "rank_and_world",
    "to_device",
    "wait_for_all",
]

Losses = dict[str, Tensor]
Batch = Any
_REHEARSED = ("cuda",)  # where running out of memory can be met; elsewhere the system kills the process
PATIENCE = 5  # steps in a row whose loss or gradient may be NaN or infinite before the run stops


class Method(nn.Module):
    """A training method: ``forward(batch)`` gives named losses, which `fit` adds up; all state is in the state_dict."""

    shards: "Shards | None" = None  # while it is divided over the processes
    counters: tuple[str, ...] = ()  # its buffers that count what it saw: several processes add up their counts
    couples_images: bool = False  # its losses compare the images of a batch: in parts they would be other losses

    def whole(self) -> contextlib.AbstractContextManager[None]:
        """To be entered for work on its networks outside of `forward` and `after_step`: with ``--shard`` a process has
        parts of their parameters there, in here all of them."""
        return self.shards.whole() if self.shards else contextlib.nullcontext()

    def normalisers(self, part: Batch) -> dict[str, float]:
        """What a part of a batch that does not fit in memory counts for, for each loss that is no mean over images."""
        return {}

    def after_step(self, step: int) -> None:
        """Called after optimiser step ``step`` (from 0); nothing by default."""


# -- schedules and averages --------------------------------------------------------------------------------------------


def cosine(steps: int) -> Callable[[int], float]:
    """Factor of the learning rate: half a cosine from 1 at step 0 to 0 at ``steps``."""
    return lambda step: 0.5 * (1 + math.cos(math.pi * step / steps))


def poly(steps: int, power: float = 0.9) -> Callable[[int], float]:
    """Factor of the learning rate: (1 - step / steps) to the ``power``."""
    return lambda step: float((1 - step / steps) ** power)


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, decay: float, *, averages_buffers: bool = False) -> None:
    """teacher <- decay * teacher + (1 - decay) * student for parameters; buffers are copied, or averaged like these."""
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - decay)
    pairs = list(zip(teacher.buffers(), student.buffers(), strict=True))
    averaged = [pair for pair in pairs if averages_buffers and pair[0].is_floating_point()]
    copied = [pair for pair in pairs if not (averages_buffers and pair[0].is_floating_point())]
    if averaged:
        torch._foreach_lerp_([mine for mine, _ in averaged], [theirs for _, theirs in averaged], 1 - decay)
    if copied:
        torch._foreach_copy_([mine for mine, _ in copied], [theirs for _, theirs in copied])


# -- the loop ----------------------------------------------------------------------------------------------------------


def _seed(seed: int, device: torch.device) -> None:
    """Seeds what a step on ``device`` draws from; torch's own function takes 0.1 ms, for it looks for GPUs."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def _fast_on(run: Run, method: Method) -> contextlib.AbstractContextManager[None]:
    """Keeps layers in float32 whose bfloat16 gradient is slow, where a CPU trains in bfloat16."""
    is_rounded = run.device.type == "cpu" and run.precision == "bf16"
    return slow_layers_in_float32(method) if is_rounded else contextlib.nullcontext()


def _place(method: Method, optimizer: torch.optim.Optimizer, run: Run) -> None:
    """Puts the method on its device, or a part of it where it is to be divided over several."""
    if run.shard and rank_and_world()[1] > 1:
        from segue.processes.sharded_state import Shards  # torch takes a second or more to import what it needs

        method.shards = Shards(method, optimizer, run.device)
    else:
        method.to(run.device)


def _together(method: Method) -> nn.Module:
    """The module whose forward gives the losses: the method, or `DistributedDataParallel` of it in several processes.

    Buffers are seen to by `_Loop.update`, after each step.
    """
    if rank_and_world()[1] == 1 or method.shards:
        return method
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the option has another name since torch 2.14
        return DistributedDataParallel(method, find_unused_parameters=True, broadcast_buffers=False)


@bound_to_others()
def fit(
    method: Method,
    batches: Callable[[int], Iterator[Batch]],
    *,
    run: Run,
    optimizer: torch.optim.Optimizer,
    steps: int,
    stage: str = "train",
    schedule: Callable[[int], float] = lambda step: 1.0,
    accumulate: int = 1,
    clip: float = 0.0,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    evaluate_every: int = 0,
    converged: Callable[[], bool] = lambda: False,
) -> None:
    """Trains ``method`` for ``steps`` optimiser steps, or for what is left of them after a resume.

    Args:
        method: gives named losses; its whole state_dict is saved.
        batches: gives the stream of batches from batch number n on.
        run: the folder, device, precision and seed.
        optimizer: over the parameters to train.
        steps: optimiser steps of this stage.
        stage: names the checkpoint ``<stage>.pt`` and the lines of the log.
        schedule: factor of the learning rates at each step.
        accumulate: batches per optimiser step.
        clip: largest norm of the whole gradient; 0 leaves it as it is.
        evaluate: gives scores to log, at the end and every ``evaluate_every`` steps.
        evaluate_every: steps between two evaluations; 0 evaluates at the end only.
        converged: whether to stop before ``steps``; asked before each step, and depends on the method's state alone.

    Raises:
        FloatingPointError: loss or gradient was not finite `PATIENCE` times in a row; none of those steps was taken.
        MemoryError: not even two images fit in memory; a batch that does not is taken in parts, unless the method is
            divided over the processes.
        Preempted: SIGTERM or SIGINT came; the checkpoint is written.
        RankError: another process of the run was lost.
    """
    _place(method, optimizer, run)
    run.open()
    loop = _Loop(method, optimizer, run, stage, steps, schedule)
    if loop.resume():
        return
    module = _together(method)
    as_on_first(loop.held())
    method.train()
    stream = loop.rehearsed(batches(loop.step * accumulate))
    bar = StageBar(run.console, stage, steps, loop.step)
    try:
        with Signals() as signals, _fast_on(run, method):
            while loop.step < steps and not all_agree(converged(), run.device):
                losses, images, taken = loop.gradients(module, stream, accumulate)
                loop.update(losses, taken, clip)
                bar.update(loop.step, losses["loss"], images * rank_and_world()[1])
                if evaluate is not None and loop.is_due(evaluate_every):
                    loop.score(evaluate)
                loop.save(stopping=not all_agree(not signals.seen, run.device))
    finally:
        bar.close()
    loop.finish(stopping=not all_agree(not signals.seen, run.device))


class _Loop:
    """The state of one stage between two steps: what a checkpoint holds."""

    def __init__(
        self,
        method: Method,
        optimizer: torch.optim.Optimizer,
        run: Run,
        stage: str,
        steps: int,
        schedule: Callable[[int], float],
    ) -> None:
        self.method, self.optimizer, self.run, self.stage, self.steps = method, optimizer, run, stage, steps
        self.schedule = schedule
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.step, self.bad, self.metered, self.parts = 0, 0, 0, 1
        self.owners = [module for module in method.modules() if module._buffers]  # looked for once, not at each step
        self.buffers = [buffer.clone() for buffer in self.held()]  # as they were before this step
        self.meter: dict[str, float] = {}  # sums of what was logged since the last line
        self.log_every = max(1, min(50, steps // 100))
        self.saved_at = time.monotonic()

    def held(self) -> list[Tensor]:
        """The buffers as they are now: a method may put another tensor in the place of one."""
        return [buffer for module in self.owners for buffer in module._buffers.values() if buffer is not None]

    def resume(self) -> bool:
        """Takes the checkpoint if there is one; whether the stage was finished already."""
        state = self.run.checkpoint(self.stage)
        found = -1 if state is None else int(state["step"])
        if largest(found, self.run.device) != -largest(-found, self.run.device):
            raise RankError(
                f"the processes of this run find different checkpoints of {self.stage}, this one at step {found}: "
                f"{self.run.out} must lie on a disk that all machines share"
            )
        if state is not None:
            with self.method.whole():
                self.method.load_state_dict(state["method"])
            self.run.clock.go_on(state.get("seconds", 0.0))
            if state["done"]:
                self._end_shards()
                self.run.say(f"{self.stage}: finished before, taken from {self.run.out / f'{self.stage}.pt'}")
                return True
            load = self.method.shards.load if self.method.shards else self.optimizer.load_state_dict
            load(state["optimizer"])
            kept = ("step", "bad", "meter", "metered", "parts")
            self.step, self.bad, self.meter, self.metered, self.parts = (state[name] for name in kept)
            self.run.say(f"{self.stage}: resumed at step {self.step} of {self.steps}")
            world, before = rank_and_world()[1], state.get("world", 1)
            if world != before:
                told = f"{before} processes before and {world} now, so a step takes {world / before:g} times the images"
                self.run.say(f"warning: {self.stage}: {told}; it does not end as it would have with {before}")
        self.run.rewind(self.stage, self.step)
        return False

    def rehearsed(self, stream: Iterator[Batch]) -> Iterator[Batch]:
        """The stream, once a step on its first batch was tried without taking it: it finds how small parts must be.

        Raises:
            MemoryError: two images are too many.
        """
        if self.run.device.type not in _REHEARSED:
            return stream
        batch = to_device(next(stream), self.run.device)
        images, fewest = max(1, count(batch)), min(counts(batch), default=0)
        most = max(1, fewest // 2)  # parts of two images of each kind
        self.keep_buffers()
        while True:
            try:
                self._tried(batch)
                break
            except torch.OutOfMemoryError as error:
                self.optimizer.zero_grad(set_to_none=True)
                told = f"{self.stage}: a batch of {images} does not fit in memory ({error}); lower --batch"
                if self.method.couples_images:
                    raise MemoryError(f"{told}, for the losses compare the images of a batch with each other") from None
                if self.method.shards:  # the others wait in the middle of the step for this one's part
                    raise MemoryError(f"{told} and raise --accumulate") from None
                if self.parts == most:
                    few = "two" if fewest // most == 2 else str(fewest)
                    told = f"{self.stage}: {few} images do not fit in memory ({error})"
                    raise MemoryError(f"{told}; lower --crop") from None
                self.parts = min(2 * self.parts, most)
            finally:
                self.restore_buffers()
        parts = largest(self.parts, self.run.device)
        if parts > 1:
            told = f"a batch of {images} does not fit in memory: it is taken in {parts} parts, for one step"
            seen = f"batch normalisation, and whatever else is of a whole batch, sees {images // parts} of them"
            self.run.say(f"{self.stage}: {told} ({seen})")
        self.parts = parts
        return itertools.chain([batch], stream)

    def _tried(self, batch: Batch) -> None:
        """Gradients of a batch, beside what the optimiser will keep from its first step on."""
        room = torch.empty(bytes_to_come(self.optimizer), dtype=torch.uint8, device=self.run.device)
        self._gradients_of(self.method, batch)
        del room

    def keep_buffers(self) -> None:
        """What `restore_buffers` brings back, from here on."""
        if self.buffers:
            torch._foreach_copy_(self.buffers, self.held())

    def restore_buffers(self) -> None:
        """Statistics of batch normalisation, queues: as if the batch had not been seen."""
        if self.buffers:
            torch._foreach_copy_(self.held(), self.buffers)

    def share_buffers(self) -> None:
        """Buffers become those of the first process, but for counters, which count what any process saw."""
        if rank_and_world()[1] == 1:
            return
        places = {id(getattr(self.method, name)) for name in self.method.counters}
        pairs = list(zip(self.held(), self.buffers, strict=True))
        counted = [(now, before) for now, before in pairs if id(now) in places]
        added_up([now for now, _ in counted], [before for _, before in counted])
        as_on_first([now for now, _ in pairs])

    def gradients(
        self, module: nn.Module, stream: Iterator[Batch], accumulate: int
    ) -> tuple[dict[str, float], int, list[Batch]]:
        """Gradients of ``accumulate`` batches, averaged: (losses by name, images, the batches)."""
        _seed(mix(self.run.seed, self.stage, self.step, rank_and_world()[0]), self.run.device)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.schedule(self.step)
        self.keep_buffers()
        self.optimizer.zero_grad(set_to_none=True)
        losses: dict[str, float] = {}
        taken: list[Batch] = []
        for i in range(accumulate):
            batch = to_device(next(stream), self.run.device)
            taken.append(batch)
            for name, loss in self._gradients_of(module, batch, 1 / accumulate, is_last=i == accumulate - 1).items():
                losses[name] = losses.get(name, 0.0) + loss
        return losses, sum(map(count, taken)), taken

    def _gradients_of(
        self, module: nn.Module, batch: Batch, share: float = 1.0, *, is_last: bool = True
    ) -> dict[str, float]:
        """Adds ``share`` times the gradients of a batch, taken in `parts`; its losses by name, times ``share``."""
        losses: dict[str, float] = {}
        parts = split(batch, self.parts)
        weights = [self.method.normalisers(part) for part in parts] if len(parts) > 1 else [{}]
        for i, part in enumerate(parts):
            waits = isinstance(module, DistributedDataParallel) and not (is_last and i == len(parts) - 1)
            with module.no_sync() if waits else contextlib.nullcontext():  # type: ignore[operator]  # ranks average last
                with torch.autocast(self.run.device.type, torch.bfloat16, enabled=self.run.precision == "bf16"):
                    named: Losses = module(part)
                for name in named if len(parts) > 1 else ():
                    counted = [own.get(name, count(other)) for own, other in zip(weights, parts, strict=True)]
                    named[name] = named[name] * (counted[i] / (sum(counted) or 1.0))
                total = share * torch.stack([loss.float() for loss in named.values()]).sum()
                if total.requires_grad:
                    torch.autograd.backward(total)
            losses["loss"] = losses.get("loss", 0.0) + float(total.detach())
            for name, loss in named.items():
                losses[name] = losses.get(name, 0.0) + share * float(loss.detach())
        return losses

    def update(self, losses: dict[str, float], batches: list[Batch], clip: float) -> None:
        """The optimiser step, unless loss or gradient is not finite; and the log."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        total = self._norm([p.grad for p in parameters if p.grad is not None])
        if clip:
            nn.utils.clip_grads_with_norm_(parameters, clip, total, foreach=True)
        norm = float(total)
        if all_agree(math.isfinite(losses["loss"]) and math.isfinite(norm), self.run.device):
            self.optimizer.step()
            self.share_buffers()
            self.method.after_step(self.step)
            for name, value in {**losses, "gradient_norm": norm}.items():
                self.meter[name] = self.meter.get(name, 0.0) + value
            self.metered += 1
            self.bad = 0
        else:
            is_sound = math.isfinite(losses["loss"])
            is_own = all_agree(is_sound, self.run.device) or not is_sound
            self._refuse({**losses, "gradient_norm": norm}, batches, is_own)
        self.step += 1
        if (self.step % self.log_every == 0 or self.step == self.steps) and self.metered:
            means = {name: total / self.metered for name, total in self.meter.items()}
            rate = self.optimizer.param_groups[0]["lr"]
            self.run.log(self.stage, self.step, {**means, "lr": rate, "seconds": time.time()})
            self.meter, self.metered = {}, 0

    def _norm(self, gradients: list[Tensor]) -> Tensor:
        """2-norm of all gradients together."""
        if not gradients:
            return torch.zeros(())
        if self.method.shards:
            return self.method.shards.norm(gradients)
        total: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        return total

    def _refuse(self, values: Mapping[str, float], batches: list[Batch], is_own: bool) -> None:
        """Notes a step that is not taken, and stops the run after `PATIENCE` of them in a row.

        Args:
            values: losses by name, and the norm of the gradient.
            batches: of the step.
            is_own: whether they may be to blame: not where it is another process whose loss is not finite.
        """
        self.bad += 1
        self.restore_buffers()
        self.run.log(self.stage, self.step + 1, {"refused": "not finite", **{k: repr(v) for k, v in values.items()}})
        shown = ", ".join(f"{name} {value:g}" for name, value in values.items())
        message = f"{self.stage} step {self.step}: loss or gradient is not finite ({shown}); step not taken"
        self.run.say(f"warning: {message}")
        if self.bad >= PATIENCE:
            named = self.method.named_parameters()
            norms = {name: float(self._norm([p.grad])) for name, p in named if p.grad is not None}
            rates = [float(group["lr"]) for group in self.optimizer.param_groups]
            state = {"step": self.step, "values": dict(values), "batches": batches, "norms": norms, "rates": rates}
            rank = rank_and_world()[0]
            kept = f"refused_{self.stage}{f'_{rank}' if rank else ''}"
            told = "Another process of the run says which samples they were"
            if is_own:
                self.run.save(kept, state, own=True)
                names = ", ".join([name for batch in batches for name in names_of(batch)][:8])
                told = f"Samples: {names}. Batch, rates and the norms of gradients are in {self.run.out / kept}.pt"
            raise FloatingPointError(
                f"{message}; {self.bad} in a row, so the run stops. {told}. Lower the learning rate, or train with "
                "--precision fp32, into another --out"
            )

    def is_due(self, every: int) -> bool:
        """Whether to evaluate after this step."""
        return self.step == self.steps or (every > 0 and self.step % every == 0)

    def score(self, evaluate: Callable[[], Mapping[str, float]]) -> None:
        """Logs what ``evaluate`` gives of the method, which is whole for it and learns again after it."""
        with self.method.whole():
            scores = evaluate()
        self.run.log(self.stage, self.step, {f"val/{name}": value for name, value in scores.items()})
        self.method.train()

    def save(self, *, stopping: bool) -> None:
        """Writes the checkpoint if it is time, or if the run is ``stopping``; the last step is left to `finish`.

        Raises:
            Preempted: it is stopping, and the checkpoint is written.
        """
        if self.step == self.steps:
            return
        is_time = time.monotonic() - self.saved_at >= self.run.checkpoint_every
        if self.method.shards:  # all have to give their parts
            is_time = not all_agree(not is_time, self.run.device)
        if stopping or is_time:
            self._write(done=False)
            self.saved_at = time.monotonic()
        if stopping:
            self._stop()

    def _stop(self) -> None:
        """Raises `Preempted` in all processes once the first has written: whoever started them ends all with one."""
        wait_for_all()
        place = f"step {self.step} of {self.stage}"
        self.run.say(f"stopped by a signal at {place}; the same command goes on from there")
        raise Preempted

    def finish(self, *, stopping: bool) -> None:
        """Writes the checkpoint of a finished stage, without the optimiser's state, which nothing needs any more.

        Raises:
            Preempted: a signal came in the last step.
        """
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate
        self._end_shards()
        self._write(done=True)
        if stopping:
            self._stop()

    def _end_shards(self) -> None:
        """Every process has the whole method again."""
        if self.method.shards:
            self.method.shards.end()
            self.method.shards = None

    def _write(self, *, done: bool) -> None:
        state = {
            "step": self.step, "bad": self.bad, "meter": self.meter, "metered": self.metered, "parts": self.parts,
            "done": done, "world": rank_and_world()[1], "seconds": self.run.clock.seconds(),
        }  # fmt: skip
        state |= {"method": self.method.state_dict(), "optimizer": {} if done else self.optimizer.state_dict()}
        self.run.save(self.stage, self.method.shards.gathered(state) if self.method.shards else state)
