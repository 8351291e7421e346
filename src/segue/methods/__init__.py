"""One file per paper. The folder is the registry: each file says which verb it serves in a line ``VERB = "..."``."""

import ast
import importlib
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parent


def names(verb: str | None = None) -> list[str]:
    """The methods, or those that serve ``verb``; read from the files' text, so nothing is imported."""
    found = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")
    return [name for name in found if verb is None or verb_of(name) == verb]


def verb_of(name: str) -> str:
    """The verb that a method's file says it serves."""
    tree = ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "VERB":
            return str(ast.literal_eval(node.value))
    raise TypeError(f"methods/{name}.py has no line VERB = '...'")


def load(name: str) -> ModuleType:
    """The method's module: ``Config`` and ``train(config, run, data)``."""
    return importlib.import_module(f"segue.methods.{name}")
