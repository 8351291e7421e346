"""Where work is done: device, precision and the processes that ``torchrun`` started, and who refuses several."""

import atexit
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from segue.errors import UsageError
from segue.processes.ranks import STEP, leave, rank_and_world

LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What every training verb takes that is no field of a method.

    Args:
        seed: of everything random.
        device: ``auto``, ``cpu``, ``cuda``.
        precision: ``auto``, ``fp32`` or ``bf16``.
        workers: processes that load data; -1 takes 0 on a CPU and 4 on a GPU.
        quiet: print nothing.
        shard: divide parameters, gradients and optimiser state over the processes that ``torchrun`` started.
        log_to: what each line of the log is written to besides: ``tensorboard``, ``wandb``, ``mlflow``.
        command: the words of the command line; empty from Python.

    Raises:
        UsageError: a seed that no generator takes.
    """

    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    workers: int = -1
    quiet: bool = False
    shard: bool = False
    log_to: Sequence[str] = ()
    command: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        refuse_seed(self.seed)

    def settled(self) -> "Surroundings":
        """The same with every ``auto`` decided; joins the processes that ``torchrun`` started."""
        device = join_processes(pick_device(self.device))
        workers = self.workers if self.workers >= 0 else (4 if device.startswith("cuda") else 0)
        return replace(self, device=device, precision=pick_precision(self.precision, device), workers=workers)


def refuse_seed(seed: int) -> None:
    """Refuses a seed that some generator of random numbers does not take.

    Raises:
        UsageError: it is below 0 or above `LARGEST_SEED`.
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise UsageError(f"--seed {seed}: give a whole number from 0 to {LARGEST_SEED}")


def pick_device(name: str) -> str:
    """``auto`` as cuda or cpu; another name as it is.

    Raises:
        UsageError: no such device here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:  # each process on a GPU of its own: whatever is put on the first stays there
        is_one_of_several = name == "cuda" and "WORLD_SIZE" in os.environ
        torch.zeros(1, device=f"cuda:{os.environ['LOCAL_RANK']}" if is_one_of_several else name)
    except (RuntimeError, AssertionError) as error:
        here = "cpu, cuda" if torch.cuda.is_available() else "cpu"
        raise UsageError(f"--device {name}: {str(error).splitlines()[0]}; here is: {here}") from None
    return name


def pick_precision(name: str, device: str) -> str:
    """``auto`` as bf16 where the hardware multiplies it, else fp32.

    Raises:
        UsageError: no such precision.
    """
    if name not in ("auto", "fp32", "bf16"):
        raise UsageError(f"--precision {name}: give auto, fp32 or bf16")
    if name != "auto":
        return name
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"


def join_processes(device: str) -> str:
    """Joins the processes that ``torchrun`` started, if it did; the device of this one."""
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        return device
    if device.startswith("cuda"):
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    backend = "nccl" if device.startswith("cuda") else "gloo"
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and os.environ.get("GROUP_WORLD_SIZE") == "1":
        # On one machine torchrun keeps its store when it starts the processes again: they would read the addresses of
        # those before. On several each counts its own restarts: there docs/many_machines.md sets a variable of torch.
        store, rank, world = next(iter(rendezvous("env://")))
        own = PrefixStore(f"segue_{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
        dist.init_process_group(backend, store=own, rank=rank, world_size=world, timeout=STEP)
    else:
        dist.init_process_group(backend, timeout=STEP)
    atexit.register(leave)
    return device


def refuse_several(command: str, instead: str) -> None:
    """Refuses several processes for a command that one process does; the first of them says so.

    Args:
        command: of the command line.
        instead: what to do.

    Raises:
        SystemExit: in the others.
        UsageError: ``torchrun``, or what is like it, started several; they need not have been joined yet.
    """
    world = max(int(os.environ.get("WORLD_SIZE", "1")), rank_and_world()[1])
    if world > 1 and os.environ.get("RANK", "0") != "0":
        raise SystemExit(2)
    if world > 1:
        raise UsageError(f"segue {command} does not run in several processes ({world} were started): {instead}")
