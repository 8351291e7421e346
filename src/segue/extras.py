"""Packages that only some commands need."""

import importlib
from typing import Any

from segue.errors import UsageError


def require(package: str, extra: str) -> Any:
    """An imported package of the extra ``extra``.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        message = f"this needs the package {package} ({error}): pip install 'segue[{extra}]'"
        raise UsageError(message) from None
