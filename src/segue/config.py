"""Dataclasses that methods share, and the only place that knows jsonargparse.

Every leaf field of a method's ``Config`` is an option of its own name (``--steps 200``) and a key of a config file,
wherever it is nested; so leaf names are unique within a ``Config``.
"""

import dataclasses
import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from segue.errors import DataError, UsageError
from segue.records import read_yaml

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Data:
    """What to learn from.

    Args:
        data: folder of the labelled set, or ``FOLDER:split``.
        labels: how many of its training labels to use: a share (5%), a count, ``all``, or a file of names.
        unlabeled: folders of unlabelled images, or ``rest`` for the training images not chosen by ``labels``.
        ledger: file of a review (``segue serve --review``); unlabelled images rejected or to be redrawn are left out.
        val: split to validate on; ``auto`` takes ``val`` if there is one, or else a fifth of the labelled images.
        layout: how the set lies on disk; ``auto`` looks.
        map: stored mask values to map, as ``77:ignore,255:1``; a range as ``1-19:0``.
        allow_missing: go on although some images have no mask, or masks no image.
        skip_bad: go on without pairs that cannot be read or whose sizes differ.
        copy_paste: classes whose objects are cut out and put into other training images, as ``pole,bicycle``; ``auto``
            takes the rare ones, and in ``extend`` the new ones.
    """

    data: str = ""
    labels: str = "all"
    unlabeled: tuple[str, ...] = ()
    ledger: str = ""
    val: str = "auto"
    layout: str = "auto"
    map: str = ""
    allow_missing: bool = False
    skip_bad: bool = False
    copy_paste: str = ""


@dataclasses.dataclass(frozen=True)
class Domains:
    """What to learn from, and where it is to work.

    Args:
        source: folders of labelled sets, or ``FOLDER:split``.
        target: folder of images of the domain that matters, or ``FOLDER:split``; masks in it are left alone.
        map: a class map (``maps.yaml``) for all sources, or one for each, from their classes to the model's: those of
            ``val``, else of the target where it has a class list, else of the first source.
        val: labelled set of the target's domain, or ``FOLDER:split``; none if absent.
        layout: how the labelled sets lie on disk; ``auto`` looks.
        translated: folder of the source's images in the target's style, of the same names, instead of a style.
        allow_missing: go on although some source images have no mask, or masks no image.
        skip_bad: go on without pictures and pairs that cannot be read or whose sizes differ.
        copy_paste: classes of the model whose objects are cut out and put into other pictures of their source;
            ``auto`` takes the rare ones of each.
        limit: points of mIoU that the whole may lose against source-only; beyond it the run is not for release.
        class_limit: points of IoU that one class may lose.
    """

    source: tuple[str, ...] = ()
    target: str = ""
    map: tuple[str, ...] = ()
    val: str = ""
    layout: str = "auto"
    translated: str = ""
    allow_missing: bool = False
    skip_bad: bool = False
    copy_paste: str = ""
    limit: float = 1.0
    class_limit: float = 5.0


@dataclasses.dataclass(frozen=True)
class Network:
    """The network: a timm encoder under a DeepLabV3+ decoder.

    Args:
        encoder: any timm model that gives feature maps.
        init: what the encoder starts from: ``auto`` (ImageNet weights at hand, from ``$SEGUE_MIRROR/weights`` or
            the extra ``weights``, else random), ``random``, ``timm:`` or ``hf:owner/name`` (download), a .safetensors
            file, or the folder of a run or model.
        output_stride: of the encoder, 8 or 16.
        decoder_channels: channels of the decoder.
    """

    encoder: str = "mobilenetv2_100"
    init: str = "auto"
    output_stride: int = 16
    decoder_channels: int = 256


@dataclasses.dataclass(frozen=True)
class Views:
    """The training views.

    Args:
        crop: side of the square crops, in pixels; a multiple of 16.
        scale: smallest and largest factor images are scaled by before cropping.
        batch: crops a step; at least 2, for batch normalisation.
        accumulate: batches whose gradients make one step.
    """

    crop: int = 256
    scale: tuple[float, float] = (0.5, 2.0)
    batch: int = 8
    accumulate: int = 1


def leaves(kind: type[Any]) -> dict[str, tuple[Any, Any]]:
    """Type and default of every leaf field of a config dataclass, by name.

    Raises:
        TypeError: two nested dataclasses share a field name.
    """
    found: dict[str, tuple[Any, Any]] = {}
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        inner = hints[field.name]
        own = (
            leaves(inner)
            if isinstance(inner, type) and dataclasses.is_dataclass(inner)
            else {field.name: (inner, field.default)}
        )
        for name, leaf in own.items():
            if name in found:
                raise TypeError(f"{kind.__module__}: the config field {name!r} is there twice")
            found[name] = leaf
    return found


def build(kind: type[T], values: Mapping[str, Any]) -> T:
    """The config dataclass with the given leaf values and its defaults elsewhere."""
    hints = get_type_hints(kind)
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        inner = hints[field.name]
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            arguments[field.name] = build(inner, values)
        elif field.name in values:
            arguments[field.name] = values[field.name]
    return kind(**arguments)


def flat(config: Any) -> dict[str, Any]:
    """Every leaf value of a config, by name; tuples as lists, ready for YAML."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            values.update(flat(value))
        else:
            values[field.name] = list(value) if isinstance(value, tuple) else value
    return values


def documented(kind: type[Any]) -> dict[str, str]:
    """What the docstrings of a config dataclass say of each leaf field."""
    from docstring_parser import parse

    texts = {p.arg_name: " ".join((p.description or "").split()) for p in parse(kind.__doc__ or "").params}
    for field in dataclasses.fields(kind):
        inner = get_type_hints(kind)[field.name]
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            texts.update(documented(inner))
    return texts


def parse_fields(kind: type[T], arguments: list[str], command: str, *, data: str = "") -> T:
    """A config from ``--name value`` options, over a ``--config FILE``, over the defaults.

    Raises:
        UsageError: an unknown option or a value of the wrong kind.
        SystemExit: ``--help`` was asked for and printed.
    """
    from jsonargparse import ArgumentParser

    fields, texts = leaves(kind), documented(kind)

    class Parser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise UsageError(f"{command}: {_plain(message)}")

    parser = Parser(prog=command, default_env=False, exit_on_error=True)
    for name, (type_, default) in fields.items():
        if name == "data":
            continue  # given by its place
        parser.add_argument(f"--{name}", type=type_, default=default, help=texts.get(name, ""))
    options, config_file = _options(arguments, fields, command)
    namespace = parser.parse_args([*_file_options(config_file, command, fields), *options])
    return build(kind, {**{name: _tuples(getattr(namespace, name)) for name in fields if name != "data"}, "data": data})


def take_fields(kind: type[T], values: Mapping[str, Any], who: str) -> T:
    """A config from leaf values as Python holds them: of a tuple's fields one value will do, and a number for a text.

    Raises:
        UsageError: an unknown field, or a value of the wrong kind.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    fields = leaves(kind)
    parser = ArgumentParser(default_env=False, exit_on_error=False)
    for name, (type_, default) in fields.items():
        parser.add_argument(f"--{name}", type=type_, default=default)
    given: dict[str, Any] = {}
    for name, value in values.items():
        if name not in fields:
            raise UsageError(f"{who} has no field {name!r}{did_you_mean(name, set(fields))}")
        given[name] = _fitted(value, fields[name][0])
    try:
        found = parser.parse_object(given)
    except ArgumentError as error:
        raise UsageError(f"{who}: {_plain(str(error))}") from None
    return build(kind, {name: _tuples(getattr(found, name)) for name in values})


def _fitted(value: Any, type_: Any) -> Any:
    """A value as a field holds it: one of several as a list, a path or a number as text where texts are held."""
    if get_origin(type_) is tuple:
        several = value if isinstance(value, tuple | list) else [value]
        return [_fitted(each, get_args(type_)[0]) for each in several]
    is_text = type_ is str and isinstance(value, Path | int | float) and not isinstance(value, bool)
    return str(value) if is_text else value


def _options(arguments: list[str], fields: Mapping[str, tuple[Any, Any]], command: str) -> tuple[list[str], str]:
    """Options as ``--name=value``, and the file that ``--config`` names; hyphens in names do as well as underscores.

    Raises:
        UsageError: an unknown option, a value without an option, an option without its value, or one of several values
            that is there twice: the second could mean more of them, or others.
    """
    options, config_file, rest, lists = [], "", list(arguments), set[str]()
    known = {f"--{name}" for name in fields if name != "data"} | {"--config", "--help"}
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        option = "--" + option[2:].replace("-", "_") if option.startswith("--") else option
        if option in ("--help", "-h"):
            options.append("--help")
            continue
        if option not in known:
            what = "option" if option.startswith("-") else "argument"
            raise UsageError(f"{command}: unknown {what} {option}{did_you_mean(option, known)}")
        type_ = fields.get(option[2:], (str, ""))[0]
        if not equals:
            if type_ is bool and (not rest or rest[0].startswith("--")):
                value = "true"
            elif not rest:
                raise UsageError(f"{command}: {option} needs a value")
            else:
                value = rest.pop(0)
        if option == "--config":
            config_file = value
            continue
        if get_origin(type_) is tuple:
            if option in lists:
                raise UsageError(f"{command}: {option} is there twice; write all its values with commas between: A,B")
            lists.add(option)
            value = _listed(value, texts=get_args(type_)[0] is str)
        options.append(f"{option}={value}")
    return options, config_file


def _file_options(name: str, command: str, fields: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """The options that a config file stands for; none where no file is named.

    Raises:
        UsageError: no such file, no YAML, or a field that is not known.
    """
    if not name:
        return []
    path = Path(name)
    if not path.is_file():
        raise UsageError(f"{command}: --config {path}: no such file")
    try:
        values = read_yaml(path, "the settings of a method") or {}
    except DataError as error:
        raise UsageError(f"{command}: --config {error}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{command}: --config {path} must hold 'name: value' lines")
    values = {str(name): value for name, value in values.items() if name != "data"}
    known = {f"--{name}" for name in fields if name != "data"}
    unknown = [name for name in values if f"--{name}" not in known]
    if unknown:
        raise UsageError(f"{command}: {path}: unknown field {unknown[0]!r}{did_you_mean(f'--{unknown[0]}', known)}")
    values = {name: _fitted(value, fields[name][0]) for name, value in values.items()}
    return [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in values.items()]


def _listed(value: str, *, texts: bool) -> str:
    """A value, or several with commas between, as a list, so that a tuple option takes both; ``texts`` stay texts."""
    return value if value.startswith("[") else json.dumps([p if texts else _number(p) for p in value.split(",")])


def _number(text: str) -> str | float:
    """A number where it is one."""
    try:
        return float(text)
    except ValueError:
        return text


def _tuples(value: Any) -> Any:
    """Lists as tuples, for frozen dataclasses."""
    return tuple(value) if isinstance(value, list) else value


def did_you_mean(name: str, known: set[str] | list[str]) -> str:
    """A hint at the nearest known name, or at ``--help``."""
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else "; --help lists what there is"


def _plain(message: str) -> str:
    """The parser's message on one line."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return " ".join(lines[:3]) if lines else "the options cannot be understood"
