"""Several seeds of one training: what is averaged, what interval is given, and what is said of it."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY, options

from segue.errors import UsageError
from segue.report.seeds import Row, sentence, write_seeds
from segue.text import percent
from segue.verbs import train

FIELDS = {"method": "pixel_contrast", "device": "cpu", "precision": "fp32", "quiet": True, **TINY, "steps": 4}


def test_interval_by_hand() -> None:
    row = Row("miou", ((0.5, 0.6, 0.7), (0.4, 0.4, 0.4)))
    assert row.differences == pytest.approx([0.1, 0.2, 0.3])
    # mean 0.2, deviation 0.1, t of 2 degrees of freedom at 97.5 % 4.3027
    assert row.interval() == pytest.approx((0.2 - 4.302653 * 0.1 / math.sqrt(3), 0.2 + 4.302653 * 0.1 / math.sqrt(3)))
    assert row.spread(0) == pytest.approx((0.6, 0.1))
    assert all(map(math.isnan, Row("miou", ((0.5,), (0.4,))).interval()))


def test_what_is_said() -> None:
    told = sentence(("a", "b"), [Row("miou", ((0.5, 0.6, 0.7), (0.4, 0.4, 0.4)))])
    assert told == (
        "a reaches mIoU 60.0 ± 10.0 % over 3 seeds, +20.0 points against b (95 % interval -4.8 to +44.8; better with 3 "
        "of 3): these seeds do not tell the two apart."
    )
    assert sentence(("a", "b"), [Row("pq", ((0.5, 0.52), (0.4, 0.42)))]).endswith("that is more than chance.")
    assert sentence(("a",), [Row("miou", ((0.5, 0.6),))]) == "a reaches mIoU 55.0 ± 7.1 % over 2 seeds."
    told = sentence(("a", "b"), [Row("miou", ((0.5,), (0.4,)))])
    assert told.endswith("+10.0 points against b: one seed does not tell the two apart.")
    assert Row("ece", ((0.1, 0.3), (0.2, 0.2))).better == 1
    assert Row("ece", ((0.1, 0.1), (0.2, 0.2))).better == 2  # less error is better
    assert sentence(("a",), []) == "Nothing was measured: there are no validation images."


def test_a_plain_arm_that_some_seeds_lack_counts_for_none(tmp_path: Path) -> None:
    folders = [tmp_path / str(seed) for seed in range(2)]
    for folder, arms in zip(folders, (("", "baseline"), ("",)), strict=True):
        for arm in arms:
            (folder / arm).mkdir(parents=True, exist_ok=True)
            (folder / arm / "evaluation.json").write_text(json.dumps({"method": "m", "scores": {"miou": 0.5}}))
        (folder / "run.json").write_text(json.dumps({"identity": {"seed": int(folder.name)}, "data": {}}))
    assert write_seeds(tmp_path, folders) == "m reaches mIoU 50.0 ± 0.0 % over 2 seeds."


def test_the_page_says_whether_the_seeds_were_measured_on_the_same_images(tmp_path: Path) -> None:
    folders = [tmp_path / str(seed) for seed in range(2)]

    def told(names: list[str]) -> str:
        for folder, name in zip(folders, names, strict=True):
            folder.mkdir(exist_ok=True)
            (folder / "evaluation.json").write_text(json.dumps({"method": "m", "scores": {"miou": 0.5}}))
            data = {"validation_names": [name], "validation_at": {"digest": "d"}}
            (folder / "run.json").write_text(json.dumps({"identity": {"seed": int(folder.name)}, "data": data}))
        write_seeds(tmp_path, folders)
        return (tmp_path / "seeds.html").read_text()

    assert "Each seed drew its own images to validate on" in told(["a", "b"])
    same = told(["a", "a"])
    assert "other validation images may say something else" in same
    assert "interval" not in same, "one arm: there is no difference"


def test_a_score_that_some_seeds_lack_says_of_how_many_it_is(tmp_path: Path) -> None:
    folders = [tmp_path / str(seed) for seed in range(3)]
    for folder, scores in zip(folders, ({"miou": 0.5, "iou/sign": 0.9}, {"miou": 0.6}, {"miou": 0.7}), strict=True):
        folder.mkdir()
        (folder / "evaluation.json").write_text(json.dumps({"method": "m", "scores": scores}))
        (folder / "run.json").write_text(json.dumps({"identity": {"seed": int(folder.name)}, "data": {}}))
    write_seeds(tmp_path, folders)
    page = (tmp_path / "seeds.html").read_text()
    assert "IoU of sign (1 of 3 seeds)" in page
    assert "(3 of 3 seeds)" not in page
    assert sentence(("a",), [Row("miou", ((0.6,),))]) == "a reaches mIoU 60.0 % with one seed."


@pytest.mark.slow
def test_two_seeds_beside_their_plain_arms_and_again(dataset: Path, tmp_path: Path) -> None:
    out = train(str(dataset), tmp_path / "runs", compare=True, seed=3, seeds=2, **FIELDS)
    assert sorted(path.name for path in out.iterdir()) == ["seed_3", "seed_4", "seeds.html", "seeds.json"]
    found = json.loads((out / "seeds.json").read_text())
    single = [json.loads((out / f"seed_{seed}" / "evaluation.json").read_text())["scores"]["miou"] for seed in (3, 4)]
    plain = [
        json.loads((out / f"seed_{seed}" / "baseline" / "evaluation.json").read_text())["scores"]["miou"]
        for seed in (3, 4)
    ]
    assert found["scores"]["miou"] == {"pixel_contrast": single, "supervised": plain}
    assert found["differences"]["miou"]["each"] == pytest.approx([a - b for a, b in zip(single, plain, strict=True)])
    assert single[0] != single[1]
    one = train(str(dataset), tmp_path / "one", compare=True, seed=4, **FIELDS)
    assert json.loads((one / "evaluation.json").read_text())["scores"]["miou"] == single[1]
    page = (out / "seeds.html").read_text()
    assert found["sentence"] in page.replace("&#39;", "'")
    for seed, scores in zip((3, 4), zip(single, plain, strict=True), strict=True):
        cells = "".join(f'<td class="n">{percent(score)}</td>' for score in scores)
        row = f'<a href="seed_{seed}/report.html">seed_{seed}</a></th><td class="n">{seed}</td>{cells}'
        assert row in page
    assert "IoU of disc" in page
    before = (out / "seed_3" / "model" / "model.safetensors").stat().st_mtime_ns
    (out / "seeds.json").unlink()
    train(str(dataset), out, compare=True, seed=3, seeds=3, **FIELDS)  # one more: the others are not trained again
    assert (out / "seed_3" / "model" / "model.safetensors").stat().st_mtime_ns == before
    assert len(json.loads((out / "seeds.json").read_text())["runs"]) == 3


def test_a_class_that_one_seed_lacks_counts_where_it_is_there(dataset: Path, tmp_path: Path) -> None:
    from segue.report.arm import Arm
    from segue.report.seeds import rows_of

    def arm(miou: float, disc: float | None) -> Arm:
        return Arm("method", "a", tmp_path, {"scores": {"miou": miou, "iou/disc": disc}}, [])

    rows = {row.name: row for row in rows_of([[arm(0.1, None)], [arm(0.2, 0.5)]])}
    assert (rows["miou"].seeds, rows["iou/disc"].values) == (2, ((0.5,),))


@pytest.mark.slow
def test_the_command(segue: Callable[..., tuple[int, str, str]], dataset: Path, tmp_path: Path) -> None:
    call = ("train", dataset, "--out", tmp_path / "runs", "--method", "supervised", *options(steps=1))
    status, output, errors = segue(*call, "--seeds", 2, "--json")
    assert status == 0, errors
    assert json.loads(output)["arms"] == ["supervised"]
    assert "supervised reaches mIoU" in errors
    assert "seeds.html" in errors
    for seeds, out, message in (
        (0, tmp_path / "no", "--seeds 0: give at least 1"),
        (2, dataset, "is not empty and holds no runs of several seeds"),
    ):
        status, _, errors = segue(*call[:2], "--out", out, *call[4:], "--seeds", seeds)
        assert (status, message in errors) == (2, True)
    with pytest.raises(UsageError, match="holds no run of Segue"):
        train(str(dataset), tmp_path / "runs", **FIELDS)


@pytest.mark.slow
def test_adaptation_with_two_seeds_ends_as_its_worst(
    segue: Callable[..., tuple[int, str, str]], dataset: Path, tmp_path: Path
) -> None:
    status, output, errors = segue(
        "adapt", "--source", f"{dataset}:train", "--target", f"{dataset}:test", "--val", f"{dataset}:val", "--out",
        tmp_path / "runs", "--seeds", 2, "--json", "--limit", 100, "--class-limit", 100,
        *options(steps=2, passes=1, looks=1),
    )  # fmt: skip
    assert status == 0, errors
    assert json.loads(output)["arms"] == ["mean_teacher", "source_only"]
