"""What a training will hold in memory."""

import torch


def bytes_to_come(optimizer: torch.optim.Optimizer) -> int:
    """Bytes that an optimiser will keep of its parameters from its first step on; 0 where it has them."""
    if optimizer.state:
        return 0
    total = 0
    for group in optimizer.param_groups:
        copies = 2 if "betas" in group else int(bool(group.get("momentum")))
        for parameter in group["params"]:
            own = parameter.to_local() if hasattr(parameter, "to_local") else parameter  # with --shard
            total += copies * own.numel() * own.element_size()
    return total
