"""The state of a training, divided over its processes: ``--shard``.

Parameters, gradients and what the optimiser keeps of them are cut along their first dimension, a part for each process
(torch's `fully_shard`). The parameters of a block are put together for its own forward and backward pass, so that no
process ever holds gradients or optimiser state of the whole network.

A divided method has two faces. Its modules wear the divided one while it trains: parameters are DTensors, and hooks put
them together. For work outside of `forward` and `after_step`, `Shards.whole` puts on the other one, that of the same
method in one process: its own parameters, no hooks, its own classes.
"""

import contextlib
import copy
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed._composable_state import _module_state_mapping
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from segue.errors import UsageError
from segue.processes.ranks import as_on_first, rank_and_world

SMALLEST = 0.02  # share of all parameters below which a block is not put together by itself: few and large messages


def _refuse_unfit(method: nn.Module) -> None:
    """Refuses what cannot be divided.

    Raises:
        UsageError: a parameter that is a single number, or a torch without what this needs.
    """
    if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        raise UsageError(f"--shard needs torch 2.14 or newer, and this is {torch.__version__}; leave the option out")
    single = [name for name, parameter in method.named_parameters() if parameter.ndim == 0]
    if single:
        raise UsageError(f"--shard: {single[0]} is a single number, which cannot be divided; leave the option out")


class Shards:
    """A method divided over the processes, and its optimiser.

    Args:
        method: on any device; each process takes the values of the first.
        optimizer: over parameters of it; from now on over this process's parts of them.
        device: of this process.

    Raises:
        UsageError: the method has a parameter that cannot be divided, or torch is too old.
    """

    def __init__(self, method: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        _refuse_unfit(method)
        self.optimizer = optimizer
        self.fused = all(group.get("fused") for group in optimizer.param_groups)
        modules, own = list(method.modules()), dict(method.named_parameters())
        self.strides = {parameter: parameter.stride() for parameter in own.values()}
        self.plain = {module: _Face(module, _NAMES, copied=True) for module in modules}
        known = {module: set(vars(module)) for module in modules}
        blocks = _blocks(method)
        for block in blocks:
            block.register_forward_hook(_own_memory)
        for module in (*blocks, method):
            parameters = [p for p in module.parameters() if not isinstance(p, DTensor)]
            for parameter in parameters:
                parameter.data = parameter.data.to(device).contiguous()  # fully_shard takes no channels_last
            as_on_first([parameter.data for parameter in parameters])
            fully_shard(module, mesh=_mesh(device.type)).set_reduce_scatter_unused_params(True, recurse=False)
        self.divided = {
            module: _Face(module, (*_NAMES, *sorted(set(vars(module)) - known[module]))) for module in modules
        }
        parts = dict(method.named_parameters())
        self.parts = {parameter: parts[name] for name, parameter in own.items()}
        for parameter in self.parts:
            parameter.data, parameter.grad = parameter.data.new_empty(0), None
        self._optimise(self.parts, fused=False)

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """The method as it is in one process; what is written to its parameters is kept."""
        self._gather()
        try:
            yield
        finally:
            self._divide()

    def end(self) -> None:
        """The method as it is in one process, from now on; the optimiser forgets what it kept."""
        self._gather()
        for module in self.divided:
            _module_state_mapping.pop(module, None)  # or torch would not divide it again, for a second stage
        self._optimise({part: parameter for parameter, part in self.parts.items()}, fused=self.fused)

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes this process's parts of an optimiser's whole state."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        cut = {
            number: {name: _part(value, parameters[number]) for name, value in kept.items()}
            for number, kept in state["state"].items()
        }
        self.optimizer.load_state_dict({**state, "state": cut})
        self._fuse(False)

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """2-norm of all gradients together, of each of which this process has a part."""
        total = nn.utils.get_total_norm(gradients)
        return total.full_tensor() if isinstance(total, DTensor) else total

    def gathered(self, state: Any) -> Any:
        """A state with every divided tensor whole, on the CPU of the first process; None in its place on the others."""
        if isinstance(state, DTensor):
            full = state.full_tensor()
            return full.cpu() if rank_and_world()[0] == 0 else None
        if isinstance(state, Mapping):
            return {name: self.gathered(value) for name, value in state.items()}
        return state

    def _optimise(self, of: Mapping[nn.Parameter, nn.Parameter], *, fused: bool) -> None:
        """Puts other parameters in the place of the optimiser's."""
        self.optimizer.state.clear()
        for group in self.optimizer.param_groups:
            group["params"] = [of[parameter] for parameter in group["params"]]
        self._fuse(fused)

    def _fuse(self, fused: bool) -> None:
        """Whether steps take one pass over parameter, gradient and state; torch has no such SGD for DTensors."""
        if isinstance(self.optimizer, torch.optim.SGD):
            for group in self.optimizer.param_groups:
                group["fused"] = fused

    @torch.no_grad()
    def _gather(self) -> None:
        for module in self.divided:
            if isinstance(module, FSDPModule):
                module.reshard()  # after a forward pass without a backward pass it may not be
        for parameter, part in self.parts.items():
            full = part.full_tensor()  # type: ignore[attr-defined]  # a DTensor
            parameter.data = torch.empty_strided(
                full.shape, self.strides[parameter], dtype=full.dtype, device=full.device
            ).copy_(full)
        for module, face in self.divided.items():
            face.take_off(module)
            self.plain[module].put_on(module)

    @torch.no_grad()
    def _divide(self) -> None:
        for parameter, part in self.parts.items():
            part.to_local().copy_(_part(parameter.data, part).to_local())  # type: ignore[attr-defined]
            parameter.data, parameter.grad = parameter.data.new_empty(0), None
        for module, face in self.divided.items():
            face.put_on(module)


def _part(value: Any, like: nn.Parameter) -> Any:
    """This process's part of a tensor that belongs to a divided parameter; anything else as it is."""
    if isinstance(value, Tensor) and isinstance(like, DTensor) and value.shape == like.shape:
        return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
    return value


class _Face:
    """Class and attributes of a module."""

    def __init__(self, module: nn.Module, names: Sequence[str], *, copied: bool = False) -> None:
        self.kind = module.__class__
        self.attributes = {name: copy.copy(vars(module)[name]) if copied else vars(module)[name] for name in names}

    def put_on(self, module: nn.Module) -> None:
        module.__class__ = self.kind
        vars(module).update(self.attributes)

    def take_off(self, module: nn.Module) -> None:
        for name in self.attributes:
            del vars(module)[name]


_NAMES = ("_parameters", *(name for name in vars(nn.Module()) if "_hooks" in name))  # what `fully_shard` changes


@cache
def _mesh(kind: str) -> DeviceMesh:
    """All processes, with devices of a kind."""
    mesh = init_device_mesh(kind, (rank_and_world()[1],))
    # torch remembers meshes until Python ends, and with them the group, which has to end before:
    # `segue.processes.ranks.leave`. Without this list a mesh finds its group by name.
    vars(mesh).get("_pg_registry", {}).clear()
    return mesh


def _blocks(method: nn.Module) -> list[nn.Module]:
    """What is put together by itself, the inner before the outer: elements of sequences, for those are called."""
    places = Counter(parameter for _, parameter in method.named_parameters(remove_duplicate=False))
    least = SMALLEST * sum(parameter.numel() for parameter in places)
    taken = {parameter for parameter, count in places.items() if count > 1}
    shared = frozenset(taken)
    sequences = (module for module in method.modules() if isinstance(module, nn.Sequential | nn.ModuleList))
    elements = {element for sequence in sequences for element in sequence}
    found = []
    for module in reversed(list(method.modules())):  # parents come before their children there
        own = set(module.parameters())
        is_called = module in elements and not isinstance(module, nn.ModuleList | nn.ModuleDict)
        if is_called and not own & shared and sum(parameter.numel() for parameter in own - taken) >= least:
            found.append(module)
            taken |= own
    return found


def _own_memory(_: nn.Module, __: Any, output: Any) -> Any:
    """A block's output, not as a view: torch would lose its hooks where a view is changed in place."""
    return output.clone() if isinstance(output, Tensor) and output._base is not None else output
