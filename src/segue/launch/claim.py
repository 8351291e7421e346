"""Whether a run folder is free or this run's, what ``run.json`` says of it, and what data has to tell for that."""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import yaml

import segue
from segue.data.fingerprint import fingerprint
from segue.disk import held
from segue.errors import UsageError
from segue.records import run_data, run_record
from segue.starting import start_of


class MethodData(Protocol):
    """What a verb opens for its methods."""

    def lines(self) -> list[str]:
        """What the command understood, for the person who waits."""

    def account(self) -> dict[str, Any]:
        """What goes into ``run.json`` and the report; used + dropped == found."""

    def files(self) -> Iterable[tuple[str, Sequence[Path | None]]]:
        """(name, files) of everything trained or validated on."""


def claim_folder(out: Path, identity: dict[str, Any], anyhow: Sequence[str] = ()) -> None:
    """Makes sure that ``out`` is free or holds this very run, whatever the fields ``anyhow``, which change no result.

    Raises:
        UsageError: it holds something else; the message says what differs.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; name a folder")
    if not out.exists() or not held(out):
        return
    record = out / "run.json"
    if not record.is_file():
        raise UsageError(f"--out {out} is not empty and holds no run of Segue; name another folder")
    try:
        known = json.loads(record.read_text(encoding="utf-8")).get("identity", {})
        is_sound = isinstance(known, dict) and isinstance(known.get("config", {}), dict)
    except (ValueError, AttributeError, RecursionError):
        is_sound = False
    if not is_sound:
        raise UsageError(f"{record} is damaged; name another folder for --out") from None
    pairs = [pair for pair in _pairs(known, identity) if pair[0] not in anyhow and not _same(*pair[1:])]
    differs = sorted(f"{key}: {before!r} there, {now!r} here" for key, before, now in pairs)
    if differs:
        raise UsageError(f"--out {out} holds another run ({'; '.join(differs[:3])}); name another folder")


def _same(before: object, now: object) -> bool:
    """Whether two values mean the same; of paths the spelling does not matter: ``photos``, ``./photos/``."""
    if isinstance(before, list | tuple) and isinstance(now, list | tuple):
        return len(before) == len(now) and all(map(_same, before, now))
    if isinstance(before, str) and isinstance(now, str) and "/" in before + now and before and now:
        return Path(before).absolute().resolve() == Path(now).absolute().resolve()
    return before == now


def _pairs(known: dict[str, Any], identity: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(name, value there, value here) of everything two identities state, config fields one by one."""
    there = {**{k: v for k, v in known.items() if k != "config"}, **known.get("config", {})}
    here = {**{k: v for k, v in identity.items() if k != "config"}, **identity["config"]}
    return [(key, there.get(key), here.get(key)) for key in {*there, *here}]


def refuse_changed(out: Path, described: bytes, root: object) -> None:
    """Refuses to go on with a run whose data is not what it was: it would not end as it would have.

    Args:
        out: the run folder.
        described: ``run.json`` as it would be written now.
        root: the data, for the message.

    Raises:
        UsageError: an image, a mask, a list, the classes or what labels mean have changed, or the weights that its
            encoder starts from.
    """
    here = json.loads(described)
    before, now = run_data(str(out)), here["data"]
    if not before.get("fingerprint"):
        return
    there = run_record(str(out)) or {}
    if there.get("start_content", here.get("start_content")) != here.get("start_content"):
        raise UsageError(
            f"--out {out} holds a run whose encoder started from {there.get('start')}, and now it would from "
            f"{here.get('start')}: bring those back, or name another folder"
        )
    has_changed = {name: value != now.get(name) for name, value in before.items()}  # earlier versions noted less
    what = ""
    if has_changed["fingerprint"]:
        what = f"images, masks or lists of {root} have changed"
    elif has_changed.get("labelled_names") or has_changed.get("validation_names"):
        what = f"which images of {root} are trained on and which are validated on has changed"
    elif before.get("classes") != now.get("classes"):
        what = f"the classes of {root} were {', '.join(map(str, before.get('classes', ())))}, and have changed"
    elif has_changed.get("meaning"):
        what = f"which class a label of {root} stands for has changed, by a class list, its colours or a class map,"
    if what:
        raise UsageError(
            f"--out {out} holds a run on other data: {what} since it began; bring them back, or name another folder"
        )


def describe_run(
    identity: dict[str, Any], data: MethodData, command: Sequence[str], tuned: Sequence[str], device: str
) -> dict[str, bytes]:
    """``run.json`` and ``config.yaml``."""
    described = {
        "identity": identity,
        "command": shlex.join(["segue", *command]) if command else f"segue.{identity['verb']}(...) from Python",
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": versions(),
        "git": _git(),
        "device": device,
        **_start(identity["config"]),
        "tuning": list(tuned),
        "data": {**data.account(), "fingerprint": fingerprint(data.files())},
    }
    return {
        "config.yaml": yaml.safe_dump(identity["config"], sort_keys=False).encode(),
        "run.json": json.dumps(described, indent=1).encode(),
    }


def _start(config: Mapping[str, Any]) -> dict[str, str]:
    """What the encoder starts from, where a method has one to start: ``auto`` is not the same on each machine."""
    if config.get("init") is None or config.get("encoder") is None:
        return {}
    found = start_of(config["init"], config["encoder"])
    return {"start": found.words, "start_content": found.content}


def versions() -> dict[str, str]:
    """What a run depends on."""
    from importlib.metadata import version

    names = ("torch", "torchvision", "timm", "segmentation-models-pytorch", "numpy", "pillow")
    return {"segue": segue.__version__, "python": sys.version.split()[0], **{name: version(name) for name in names}}


def _git() -> str:
    """The commit of the folder Segue was started in, ``+`` behind it where files differ; empty without git."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
        dirty = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")
