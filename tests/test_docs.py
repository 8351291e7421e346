"""What the documentation says, run."""

import argparse
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY

from segue.config import build, leaves
from segue.data.training import open_training
from segue.engine import Run
from segue.methods import load, names

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def test_the_sixth_method_of_the_docs_trains(dataset: Path, tmp_path: Path) -> None:
    path = tmp_path / "smoothed.py"
    path.write_text(blocks(ROOT / "docs" / "add_a_method.md", "python")[0])
    spec = importlib.util.spec_from_file_location("smoothed_of_the_docs", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    known = leaves(module.Config)
    config = build(module.Config, {k: v for k, v in {**TINY, "data": str(dataset)}.items() if k in known})
    module.train(config, Run(tmp_path / "run", quiet=True), open_training(config.data, seed=0))
    assert (tmp_path / "run" / "train.pt").is_file()


@pytest.mark.slow
def test_the_readmes_python_runs(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(ROOT / "README.md", "python")
    dataset.rename(tmp_path / "photos")
    tiny = ", ".join(f"{name}={value!r}" for name, value in {**TINY, "quiet": True, "device": "cpu"}.items())
    code = code.replace('labels="5%"', 'labels="50%"').replace("steps=600", tiny).replace("n=5", "n=2")
    found: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), found)
    assert "miou" in found["scores"]  # type: ignore[operator]


@pytest.mark.slow
def test_the_page_from_a_base_model_to_a_decision_runs(
    segue: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lines, in their order; smaller, and with the fewest steps."""
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "methods" / "incremental_panoptic.md").read_text(encoding="utf-8")
    lines = re.search(r"\n((?:    .+\n)+)", text[text.index("python -c") - 8 :]).group(1).splitlines()  # type: ignore[union-attr]
    small = ["--steps=1", "--batch=2", "--points=16", "--device=cpu"]
    statuses = {}
    for line in map(str.strip, lines):
        if line.startswith("python -c"):
            exec(line.split('"')[1].replace("160", "6").replace("40", "2").replace("(96, 144)", "(64, 96)"), {})
        elif line.startswith("segue "):
            words = line.split()[1:]
            small_network = ["--encoder=test_efficientnet", "--init=random"] if words[0] == "train" else []
            given = [*words, *small, *small_network] if words[0] in ("train", "extend") else words
            given = [word for i, word in enumerate(given) if word != "--steps" and given[i - 1] != "--steps"]
            statuses[words[0]], _, errors = segue(*given)
            assert statuses[words[0]] in ((0, 3) if words[0] == "extend" else (0,)), errors
    assert list(statuses) == ["data", "train", "extend", "evaluate", "predict"]


def test_every_command_shown_is_understood() -> None:
    """Each option in the pages is one of the command it stands behind, or of a method of that command."""
    from segue.cli import parser

    def options(command: argparse.ArgumentParser, prefix: str) -> dict[str, set[str]]:
        """Of each command, also of those below it."""
        found = {
            prefix: {name[2:] for action in command._actions for name in action.option_strings if name[:2] == "--"}
        }
        below = [action.choices for action in command._actions if isinstance(action, argparse._SubParsersAction)]
        for name, further in (item for choices in below for item in choices.items()):
            found |= options(further, f"{prefix} {name}")
        return found

    known = options(parser(), "segue")
    for command in known:
        verb = command.removeprefix("segue ")
        fields = {name.replace("_", "-") for method in names(verb) for name in leaves(load(method).Config)}
        known[command] |= fields | {"config"} if fields else set()
    verbs = sorted(known.keys() - {"segue"}, key=len, reverse=True)
    shown = 0
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for verb, line in re.findall(rf"({'|'.join(verbs)})( [^`\n|;]*)", text):
            for option in re.findall(r"(?<!\S)--([a-z][a-z0-9-]*)", line):
                assert option in known[verb], f"{page.name}: {verb}{line}: --{option}"
                shown += 1
    assert shown > 200


def test_links_between_pages_hold() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_method_has_a_page_a_config_and_a_notice() -> None:
    notice = (ROOT / "NOTICE").read_text()
    for name in names():
        assert (ROOT / "docs" / "methods" / f"{name}.md").is_file(), name
        assert list((ROOT / "configs" / name).glob("*.yaml")), name
        assert re.search(rf"^{name} \(", notice, re.MULTILINE), name


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_configs_name_known_fields_and_are_short(path: Path) -> None:
    import yaml

    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 30
    assert set(yaml.safe_load(text)) <= set(leaves(load(path.parent.name).Config))
    assert "# command:" in text
