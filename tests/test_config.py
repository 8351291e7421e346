"""Options, config files and what is said when they cannot be meant so."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from segue.config import build, documented, flat, leaves, parse_fields
from segue.errors import UsageError
from segue.methods import supervised
from segue.verbs import config_from


@dataclass(frozen=True)
class Inner:
    """Inner.

    Args:
        lr: rate.
        scale: factors.
    """

    lr: float = 0.1
    scale: tuple[float, float] = (0.5, 2.0)


@dataclass(frozen=True)
class Outer:
    """Outer.

    Args:
        steps: how many.
        folders: where.
        frozen: whether.
        data: the set.
    """

    inner: Inner = field(default_factory=Inner)
    steps: int = 10
    folders: tuple[str, ...] = ()
    frozen: bool = False
    data: str = ""


def parse(*arguments: str) -> Outer:
    return parse_fields(Outer, list(arguments), "segue test", data="set")


def test_leaves_are_flat_and_documented() -> None:
    assert set(leaves(Outer)) == {"lr", "scale", "steps", "folders", "frozen", "data"} == set(documented(Outer))
    assert build(Outer, {"lr": 0.2, "steps": 3}) == Outer(Inner(lr=0.2), steps=3)
    assert flat(Outer())["scale"] == [0.5, 2.0]


def test_options_reach_nested_fields_in_every_spelling() -> None:
    assert parse("--lr", "0.2", "--steps=3") == Outer(Inner(lr=0.2), steps=3, data="set")
    assert parse("--scale", "[1,2]").inner.scale == parse("--scale", "1,2").inner.scale == (1.0, 2.0)
    assert parse("--folders", "a,b").folders == ("a", "b")
    assert parse("--folders", "one folder/x").folders == ("one folder/x",)
    assert parse("--folders", "2024,a").folders == ("2024", "a")
    assert parse("--frozen").frozen is parse("--frozen", "true").frozen is True
    assert parse("--frozen", "--steps", "4") == Outer(steps=4, frozen=True, data="set")


@pytest.mark.parametrize(
    ("text", "folders"), [("a", ("a",)), ("2024", ("2024",)), ("[2024, b]", ("2024", "b")), ("[]", ())]
)
def test_a_config_file_may_name_one_of_several(tmp_path: Path, text: str, folders: tuple[str, ...]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"folders: {text}")
    assert parse("--config", str(path)).folders == folders


def test_a_config_file_lies_under_the_options(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("# fast\nlr: 0.5\nsteps: 7\nscale: [1, 1]\nfolders: [x]\nfrozen: true\n")
    assert parse("--config", str(path), "--steps", "8") == Outer(Inner(0.5, (1.0, 1.0)), 8, ("x",), True, "set")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stepps", "3"], "unknown option --stepps; did you mean --steps?"),
        (["--steps", "many"], "many"),
        (["--steps"], "--steps needs a value"),
        (["more"], "unknown argument more"),
        (["--config", "gone.yaml"], "gone.yaml: no such file"),
        (["--scale", "1,2,3"], "scale"),
        (["--folders", "a", "--folders=b"], "--folders is there twice; write all its values with commas between"),
    ],
)
def test_what_cannot_be_meant_is_one_line_with_the_name(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(*arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pairs", ["255:1", "1:30,2:0", "7:0.5", "-1:59:59"])
def test_pairs_in_a_config_file_are_no_numbers_to_base_60(tmp_path: Path, pairs: str) -> None:
    path = tmp_path / "c.yaml"
    for written in (pairs, f"'{pairs}'"):
        path.write_text(f"map: {written}\nsteps: 12\nscale: [0.5, 2]\nlr: 1.0e-2\nskip_bad: true\n")
        config = parse_fields(supervised.Config, ["--config", str(path)], "segue test", data="set")
        assert (config.data.map, config.steps, config.views.scale) == (pairs, 12, (0.5, 2.0))
        assert (config.lr, config.data.skip_bad) == (0.01, True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "no valid YAML"),
        ("map: !!python/name:os.system", "no valid YAML"),
        ("3", "name: value"),
        ("stps: 3", "did you mean --steps"),
    ],
)
def test_a_bad_config_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        parse("--config", str(path))


def test_a_field_there_twice_is_refused() -> None:
    @dataclass(frozen=True)
    class Twice:
        inner: Inner = field(default_factory=Inner)
        lr: float = 0.0

    import sys

    sys.modules[__name__].Inner = Inner  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="'lr' is there twice"):
        leaves(Twice)


def test_fields_from_python_are_of_their_kinds(tmp_path: Path) -> None:
    """What can be meant is taken; the rest is refused before anything is looked at."""
    config = config_from(
        "train", "pixel_contrast", {"labels": 5, "unlabeled": tmp_path, "finetune_lr": 1, "crop": "64"}
    )
    assert (config.data.labels, config.data.unlabeled, config.finetune_lr) == ("5", (str(tmp_path),), 1.0)
    assert config.views.crop == 64
    several = config_from("train", "pixel_contrast", {"unlabeled": [tmp_path, 2024]})
    assert several.data.unlabeled == (str(tmp_path), "2024")
    for name, value in (("skip_bad", "maybe"), ("steps", 2.5), ("steps", "x"), ("scale", "large"), ("labels", ["a"])):
        with pytest.raises(UsageError, match=name):
            config_from("train", "pixel_contrast", {name: value})
    with pytest.raises(UsageError, match="pixel_contrast has no field 'stpes'; did you mean steps"):
        config_from("train", "pixel_contrast", {"stpes": 2})
