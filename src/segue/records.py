"""YAML and JSON that a stranger may have written: one line names the file when it is not what was expected."""

import contextlib
import json
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from segue.errors import DataError

MOST_BYTES = 64 << 20
MOST_VALUES = 1_000_000  # in a YAML file, its aliases written out
BASE_60 = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?$")  # numbers of YAML 1.1, as 255:1 for 15301
BASELINE = "baseline"  # subfolder of a run that holds the plain training it is measured against
SEARCH = "search"  # stage of the lines of a log that count candidates, not steps
REJECTED = "rejected"  # subfolder that holds the model of a run which is not for release
PARTS = ("model", BASELINE, REJECTED)  # folders of a run that hold models
MISREAD = (
    *(LookupError, TypeError, ValueError, AttributeError, RecursionError, ArithmeticError),
    *(EOFError, SyntaxError, tokenize.TokenError),  # of numpy's headers, which are Python literals
)


@contextlib.contextmanager
def expecting(path: Path, what: str) -> Iterator[None]:
    """Takes whatever goes wrong while the content of ``path`` is taken apart for a fault of the file.

    Args:
        path: of the file.
        what: it should hold, with its article.

    Raises:
        DataError: the file is at fault.
    """
    try:
        yield
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from None
    except MISREAD as error:
        told = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise DataError(f"{path} is damaged or not {what} ({told}); restore it or name another") from None


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        DataError: it is missing, damaged, too large or holds something else.
    """
    with expecting(path, what):
        found = json.loads(_text(path))
        if not isinstance(found, dict):
            raise TypeError(f"it holds a {type(found).__name__}")
        return found


def kept_part(run: Path) -> Path:
    """The folder of the training whose model is the run's: the plain one's where the run's own was rejected."""
    return run / BASELINE if (run / REJECTED).is_dir() else run


def record_of(source: str) -> Path | None:
    """The ``run.json`` of the run that a folder is, or that the model in it is a part of; None where there is none."""
    folder = Path(source).absolute()
    while not (folder / "run.json").is_file():
        if folder.name not in PARTS:
            return None
        folder = folder.parent
    return folder / "run.json"


def run_record(source: str) -> dict[str, Any]:
    """What ``run.json`` says of a run, or of the run that a model is a part of; nothing of a model that is no run's.

    Raises:
        DataError: the record is damaged.
    """
    path = record_of(source)
    return {} if path is None else read_json(path, "the record of a run")


def run_data(source: str) -> dict[str, Any]:
    """What `run_record` says of the data.

    Raises:
        DataError: the record is damaged.
    """
    record = run_record(source)
    with expecting(record_of(source) or Path(source), "the record of a run"):
        found: dict[str, Any] = record["data"] if record else {}
        return found


def read_yaml(path: Path, what: str) -> Any:
    """What a YAML file holds, by the safe loader; ``255:1`` is a text there, see `_loaded`.

    Raises:
        DataError: it is missing, no YAML, or too large once its aliases are written out.
    """
    import yaml

    with expecting(path, what):
        try:
            found = _loaded(_text(path))
        except yaml.YAMLError as error:
            raise DataError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from None
        count, waiting = 0, [found]
        while waiting:
            value = waiting.pop()
            count += 1
            if count > MOST_VALUES:
                raise ValueError(f"more than {MOST_VALUES:,} values, aliases written out")
            waiting += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return found


def _loaded(text: str) -> Any:
    """What YAML says, by the safe loader, but for `BASE_60`: these are texts, as ``map: 255:1`` means."""
    import yaml

    loader = yaml.SafeLoader(text)
    kinds = loader.yaml_implicit_resolvers.items()
    loader.yaml_implicit_resolvers = {first: [("tag:yaml.org,2002:str", BASE_60), *known] for first, known in kinds}
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _text(path: Path) -> str:
    """The whole file.

    Raises:
        ValueError: it is too large, or no UTF-8.
    """
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise ValueError(f"{size:,} bytes are more than {MOST_BYTES:,}")
    return path.read_text(encoding="utf-8")
