"""Packages that only some commands need."""

import importlib
import shlex
import sys
from pathlib import Path
from typing import Any

import segue
from segue.errors import UsageError


def install(extra: str) -> str:
    """The command that adds an extra to the environment and the Segue that this process runs."""
    root = Path(segue.__file__).resolve().parents[2]
    is_clone = (root / "pyproject.toml").is_file()
    what = f"--editable {shlex.quote(f'{root}[{extra}]')}" if is_clone else shlex.quote(f"segue[{extra}]")
    return f"{shlex.quote(sys.executable)} -m pip install {what}"


def require(package: str, extra: str) -> Any:
    """An imported package of the extra ``extra``.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UsageError(f"this needs the package {package} ({error}): {install(extra)}") from None
