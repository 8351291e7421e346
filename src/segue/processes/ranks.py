"""What the processes of one run agree on, and what becomes of the others when one is lost."""

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import cache

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # its defaults keep the group that there is when it is imported: now none
from torch import Tensor

STEP = timedelta(minutes=10)  # for what every process does in a step: one that takes longer is lost
PATIENT = timedelta(days=2)  # for work that the first process does alone, as pseudo-labels of a large set


class RankError(ChildProcessError):
    """Another process of the run was lost; the message says how to go on."""


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of processes: (0, 1) unless ``torchrun`` started several."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


@contextlib.contextmanager
def bound_to_others() -> Iterator[None]:
    """Tells in a line that another process was lost, where torch tells of connections.

    Raises:
        RankError: one was lost.
    """
    try:
        yield
    except RuntimeError as error:
        if not (dist.is_initialized() and (isinstance(error, dist.DistError) or "gloo" in str(error))):
            raise
        raise RankError(
            f"process {rank_and_world()[0]} stops, for another one of this run has ended or cannot be reached; what "
            "that one said tells why, and the same command goes on from the last checkpoint"
        ) from None


@cache
def _patient(_: dist.ProcessGroup) -> dist.ProcessGroup:
    """All processes, as a group that waits long: by TCP, where a process that ends is noticed at once."""
    group = dist.new_group(backend="gloo", timeout=PATIENT)
    assert isinstance(group, dist.ProcessGroup)
    return group


def leave() -> None:
    """Leaves the group of processes, to be called before Python ends.

    A thread of gloo may still hold the last tensor that went round. Were Python gone when it lets go of it, a process
    that has succeeded would abort. The threads end with their group, and that once nothing refers to it.
    """
    _patient.cache_clear()
    gc.collect()
    if dist.is_initialized():
        dist.destroy_process_group()


def only_first(work: Callable[[], None]) -> None:
    """Does ``work`` on the first process while the others wait; where it fails they all stop.

    Raises:
        RankError: another process was lost.
        SystemExit: on the others, where ``work`` failed; the first says why.
    """
    rank, world = rank_and_world()
    if world == 1:
        work()
        return
    with bound_to_others():
        group = _patient(dist.group.WORLD)
    status = torch.zeros(1, dtype=torch.int64)
    try:
        if rank == 0:
            work()
    except BaseException as error:
        status[0] = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
        raise
    finally:
        with bound_to_others():
            dist.broadcast(status, 0, group=group)
    if int(status):
        raise SystemExit(int(status))


def wait_for_all() -> None:
    """Until every process has come here, however long the first takes.

    Raises:
        RankError: one was lost.
    """
    only_first(lambda: None)


def largest(number: int, device: torch.device) -> int:
    """The largest of the numbers that the processes hold."""
    if rank_and_world()[1] == 1:
        return number
    found = torch.tensor(number, device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return int(found)


def all_agree(claim: bool, device: torch.device) -> bool:
    """Whether ``claim`` holds on every process."""
    return largest(not claim, device) == 0


@torch.no_grad()
def as_on_first(tensors: Sequence[Tensor]) -> None:
    """Gives ``tensors`` of every process the values that they have on the first, a message for each type."""
    if rank_and_world()[1] == 1:
        return
    _in_messages(tensors, lambda flat: dist.broadcast(flat, 0))


@torch.no_grad()
def added_up(counters: Sequence[Tensor], before: Sequence[Tensor]) -> None:
    """Gives ``counters`` of every process what all of them counted since ``before``, which was the same on all."""
    if rank_and_world()[1] == 1 or not counters:
        return
    torch._foreach_sub_(list(counters), list(before))
    _in_messages(counters, dist.all_reduce)
    torch._foreach_add_(list(counters), list(before))


def _in_messages(tensors: Sequence[Tensor], send: Callable[[Tensor], object]) -> None:
    """Puts ``tensors`` through ``send``, which changes them in place, a message for each type."""
    for kind in sorted({tensor.dtype for tensor in tensors}, key=str):
        same = [tensor for tensor in tensors if tensor.dtype == kind]
        flat = torch.cat([tensor.reshape(-1) for tensor in same])
        send(flat)
        parts = torch.split(flat, [tensor.numel() for tensor in same])
        torch._foreach_copy_(same, [part.view(tensor.shape) for part, tensor in zip(parts, same, strict=True)])
