"""``maps.yaml``: which class of one data set is which class of another.

    # source class: target class, or ignore
    pavement: sidewalk
    fog: ignore

Every scalar is read as text: a class may be called ``no`` or ``7``. Nothing in the file is constructed or executed.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from segue.data.finding import argument
from segue.data.sample import IGNORE
from segue.errors import DataError

if TYPE_CHECKING:
    import yaml

MAX_BYTES = 1 << 20  # of the file; 255 classes need a few kilobytes
NOTHING = "ignore"  # the target of classes that the other set lacks
TEXT = "tag:yaml.org,2002:str"


def read_class_map(path: Path, source_classes: Sequence[str], target_classes: Sequence[str]) -> dict[int, int]:
    """Target class id, or `IGNORE`, by source class id: every source class once.

    Args:
        path: a YAML file with one line ``source class: target class or ignore`` a source class.
        source_classes: names by id.
        target_classes: names by id; none of them may be called ``ignore``.

    Raises:
        DataError: the file cannot be read, is no such list, names a class twice or one that the sets lack, leaves a
            source class out, or ignores all of them.
    """
    if NOTHING in target_classes:
        raise DataError(
            f"the target has a class {NOTHING!r}, which in {path} means no class; give the class another name"
        )
    ids = {name: i for i, name in enumerate(target_classes)} | {NOTHING: IGNORE}
    numbers = {name: i for i, name in enumerate(source_classes)}
    found: dict[int, int] = {}
    for where, source, target in _lines(path):
        if source not in numbers:
            raise DataError(f"{where}: the source has no class {source!r}{_near(source, source_classes)}")
        if target not in ids:
            raise DataError(f"{where}: the target has no class {target!r}{_near(target, (*target_classes, NOTHING))}")
        if numbers[source] in found:
            raise DataError(f"{where}: the source class {source!r} is mapped twice; keep one of the lines")
        found[numbers[source]] = ids[target]
    missing = [name for name in source_classes if numbers[name] not in found]
    if missing:
        raise DataError(f"{path} leaves out {', '.join(missing)}; write 'NAME: {NOTHING}' for classes the target lacks")
    if set(found.values()) == {IGNORE}:
        raise DataError(f"{path} ignores every class; map at least one to a class of the target")
    return dict(sorted(found.items()))


def _lines(path: Path) -> list[tuple[str, str, str]]:
    """(place, source class, target class) of each line, as written."""
    import yaml

    root = _parsed(path)
    if not isinstance(root, yaml.MappingNode):
        raise DataError(f"{path} must hold one line 'source class: target class' a class")
    rows = []
    for key, value in root.value:
        where = f"{path}, line {key.start_mark.line + 1}"
        for node in (key, value):
            if not isinstance(node, yaml.ScalarNode):
                raise DataError(f"{where}: a class must be a name, not a list or a mapping")
            if node.tag != TEXT:
                raise DataError(f"{where}: the tag {node.tag!r} is not read; write the name alone")
        rows.append((where, key.value, value.value))
    return rows


def _parsed(path: Path) -> "yaml.Node | None":
    """The file's tree of nodes, of which none is made an object."""
    import yaml

    if not path.is_file():
        raise DataError(
            f"{path}: no such file; segue check --source A --target B --maps {argument(path)} writes one to start from"
        )
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path} has {path.stat().st_size:,} bytes; a class map has fewer than {MAX_BYTES:,}")
        return yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8: {error}") from None
    except (yaml.YAMLError, RecursionError) as error:
        text = " ".join(str(error).split())
        raise DataError(f"{path} is no valid YAML: {text}") from None


def _near(name: str, known: Sequence[str]) -> str:
    """What was probably meant, else what there is."""
    lower = {other.lower(): other for other in reversed(known)}
    close = difflib.get_close_matches(name.lower(), lower, n=1)
    return f"; did you mean {lower[close[0]]!r}?" if close else f"; it has {', '.join(known)}"
