"""Parts of a network that training leaves as they are."""

from torch import nn


def hold_statistics(module: nn.Module) -> None:
    """Batch normalisation in ``module`` keeps to its running statistics, as they are, until the next ``train()``."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()


def hold_still(module: nn.Module) -> None:
    """`hold_statistics`, and nothing is dropped: what ``module`` says comes of its weights and the image alone."""
    from timm.layers.drop import DropPath  # whoever holds an encoder has imported it

    hold_statistics(module)
    for part in module.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd | DropPath):
            part.eval()
