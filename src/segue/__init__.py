"""Segue turns images and few, foreign or old labels into an accurate, small, extensible segmentation model."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "adapt",
    "compress",
    "evaluate",
    "extend",
    "load_model",
    "predict",
    "pretrain",
    "suggest",
    "train",
]

if TYPE_CHECKING:
    from segue.using import evaluate, predict, suggest
    from segue.verbs import adapt, compress, extend, pretrain, train
    from segue.weights import load_model

_HOMES = {
    **dict.fromkeys(("adapt", "compress", "extend", "pretrain", "train"), "segue.verbs"),
    **dict.fromkeys(("evaluate", "predict", "suggest"), "segue.using"),
    "load_model": "segue.weights",
}


def __getattr__(name: str) -> Any:
    """Imports torch only when something that needs it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'segue' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
