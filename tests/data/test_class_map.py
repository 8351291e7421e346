"""``maps.yaml``: read as it is written, proposed so that it can be read, and refused with the line and the name."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segue.data.check.domains import map_text
from segue.data.class_map import read_class_map
from segue.errors import DataError

SOURCE, TARGET = ("road", "pavement", "fog"), ("sidewalk", "road")


def written(folder: Path, text: str) -> Path:
    path = folder / "maps.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_each_source_class_gets_its_target_or_ignore(tmp_path: Path) -> None:
    path = written(tmp_path, "# domains\nfog: ignore\npavement: sidewalk  # ?\nroad: road\n")
    assert read_class_map(path, SOURCE, TARGET) == {0: 1, 1: 0, 2: 255}


def test_words_that_yaml_takes_for_numbers_and_booleans_are_names(tmp_path: Path) -> None:
    path = written(tmp_path, "no: 7\n1.0: null\n")
    assert read_class_map(path, ("no", "1.0"), ("7", "null")) == {0: 0, 1: 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("road: road\npavment: sidewalk\nfog: ignore\n", r"line 2: the source has no class 'pavment'; did you mean 'p"),
        ("road: Road\npavement: sidewalk\nfog: ignore\n", "line 1: the target has no class 'Road'; did you mean"),
        ("road: zebra\n", "the target has no class 'zebra'; it has sidewalk, road, ignore"),
        ("road: road\npavement: sidewalk\nfog: ignore\nroad: sidewalk\n", "line 4: the source class 'road' is map"),
        ("road: road\n", "leaves out pavement, fog"),
        ("road: ignore\npavement: ignore\nfog: ignore\n", "ignores every class"),
        ("road: [road, sidewalk]\n", "line 1: a class must be a name"),
        ("road: !!python/object/apply:os.system ['touch x']\n", "a class must be a name"),
        ("road: !!python/name:os.system\n", "line 1: the tag"),
        ("- road\n", "one line 'source class: target class'"),
        ("", "one line 'source class: target class'"),
        ("road: 'road\n", "no valid YAML"),
        ("[" * 5000, "no valid YAML"),
        ("a: &a [x, x]\nb: &b [*a, *a]\n", "a class must be a name"),
        ("#" * (1 << 20) + "\n", "bytes"),
    ],
)  # fmt: skip
def test_a_faulty_map_is_refused_by_line_and_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as refused:
        read_class_map(written(tmp_path, text), SOURCE, TARGET)
    assert "\n" not in str(refused.value)


def test_a_missing_map_and_one_that_is_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such file; segue check --source"):
        read_class_map(tmp_path / "maps.yaml", SOURCE, TARGET)
    (tmp_path / "maps.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="UTF-8"):
        read_class_map(tmp_path / "maps.yaml", SOURCE, TARGET)


def test_a_target_class_called_ignore_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has a class 'ignore'"):
        read_class_map(written(tmp_path, "road: ignore\n"), ("road",), ("ignore", "road"))


NAMES = st.text(st.characters(exclude_categories=["Cc", "Cs", "Cn", "Co"]), min_size=1, max_size=12).filter(
    lambda name: name != "ignore"
)


@given(
    source=st.lists(NAMES, min_size=1, max_size=5, unique=True),
    target=st.lists(NAMES, min_size=1, max_size=5, unique=True),
)
def test_what_is_proposed_can_be_read_again(
    tmp_path_factory: pytest.TempPathFactory, source: list[str], target: list[str]
) -> None:
    proposal = {name: (target[i % len(target)], i % 2 == 0) for i, name in enumerate(source)}
    path = written(tmp_path_factory.mktemp("map"), map_text(proposal, "A", "B"))
    assert read_class_map(path, source, target) == {i: i % len(target) for i in range(len(source))}
