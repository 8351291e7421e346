"""A loss that finds its gradients together with its value."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor


def once(find: Callable[..., tuple[Tensor, ...]], *sources: Tensor) -> Tensor:
    """The loss that ``find(wanted, *sources)`` gives, differentiable once.

    Args:
        find: takes a bool for each of the sources, whether its gradient is wanted, and the sources; gives the loss and,
            if any is wanted, the gradient of each source.
        sources: what the loss depends on.
    """
    return cast(Tensor, _Once.apply(find, *sources))


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, find: Callable[..., tuple[Tensor, ...]], *sources: Tensor) -> Tensor:
        loss, *gradients = find(ctx.needs_input_grad[1:], *sources)
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # once_differentiable would let it pass, and the second derivative be wrong
            raise RuntimeError("this loss can be differentiated once only: create_graph=True is not supported")
        return None, *(upstream * gradient for gradient in ctx.saved_tensors)
