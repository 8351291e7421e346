"""``segue adapt``: the whole path, the decision by hand, a harmful pair, and every wrong command."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, TINY, options, torchrun, write_set
from PIL import Image

import segue as library
from segue.adaptation import curve, darkened, decide, keep_source_only
from segue.cli.learning import report_decision
from segue.report import model_of
from segue.report.arm import Arm
from segue.report.comparison import read_entries
from segue.weights import load_model

Segue = Callable[..., tuple[int, str, str]]
RUN = ("--device", "cpu", "--precision", "fp32")


def night(root: Path, **counts: int) -> Path:
    """The scenes of `write_set`, dark and under a blue veil: another domain of the same classes."""
    write_set(root, **counts)
    for path in (root / "images").iterdir():
        with Image.open(path) as image:
            dark = np.array(image) * np.array([0.2, 0.25, 0.5]) + np.array([0, 20, 70])
        Image.fromarray(dark.astype(np.uint8)).save(path)
    return root


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return night(tmp_path / "night")


def adapt(
    segue: Segue, source: Path, target: object, out: Path, *more: object, **changes: object
) -> tuple[int, str, str]:
    return segue("adapt", "--source", source, "--target", target, "--out", out, *RUN, *more,
                 *options(**{"passes": 2, **changes}))  # fmt: skip


# -- the decision ------------------------------------------------------------------------------------------------------


def test_decision_by_hand() -> None:
    before = {"miou": 0.50, "iou/car": 0.40, "iou/sky": 0.60, "accuracy": 0.9, "iou/bus": None}
    better = decide(before, {"miou": 0.52, "iou/car": 0.36, "iou/sky": 0.68, "accuracy": 0.1}, limit=1, class_limit=5)
    assert (better["release"], better["lost"], better["kept"]) == (True, {}, "adapted")
    whole = decide(before, {"miou": 0.488, "iou/car": 0.40, "iou/sky": 0.576}, limit=1, class_limit=5)
    assert (whole["release"], list(whole["lost"]), whole["kept"]) == (False, ["miou"], "source_only")
    assert whole["lost"]["miou"] == pytest.approx(1.2)
    one = decide(before, {"miou": 0.55, "iou/car": 0.34, "iou/sky": 0.76}, limit=1, class_limit=5)
    assert list(one["lost"]) == ["car"]
    assert one["reason"].startswith("NEGATIVE TRANSFER, not for release: mIoU on the target 50.0 source-only, 55.0")
    assert "car by 6.0" in one["reason"]
    at_the_limit = decide(before, {"miou": 0.49, "iou/car": 0.35, "iou/sky": 0.63}, limit=1, class_limit=5)
    assert at_the_limit["release"] is True


def test_without_labels_nothing_is_claimed() -> None:
    found = decide({}, {}, limit=1, class_limit=5)
    assert found["release"] is None
    assert "nothing is claimed" in found["reason"]


def test_keeping_source_only_twice_or_after_a_cut_changes_nothing(tmp_path: Path) -> None:
    for folder, text in (("model", "adapted"), ("baseline/model", "plain")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "weights").write_text(text)
    for cut in (False, False, True):
        if cut:
            shutil.rmtree(tmp_path / "model")
        keep_source_only(tmp_path)
        assert (tmp_path / "model" / "weights").read_text() == "plain"
        assert (tmp_path / "rejected" / "weights").read_text() == "adapted"
        assert (tmp_path / "baseline" / "model" / "weights").read_text() == "plain"


def test_scores_of_a_rejected_model_are_told_of_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [tmp_path / name for name in ("harmed", "sound")]
    for run in runs:
        for folder, method, miou in ((run, "mean_teacher", 0.25), (run / "baseline", "source_only", 0.75)):
            folder.mkdir()
            found = {"method": method, "scores": {"miou": miou}}
            (folder / "evaluation.json").write_text(json.dumps(found))
            (folder / "run.json").write_text("{}")
        (run / "decision.json").write_text(json.dumps({"release": run.name == "sound"}))
    (runs[0] / "rejected").mkdir()
    shown = [(entry.arm.title, entry.arm.score("miou")) for entry in read_entries([str(run) for run in runs])]
    assert shown == [("source_only", 0.75), ("mean_teacher", 0.25)]
    assert [report_decision(run, as_json=True) for run in runs] == [3, 0]
    told = [json.loads(line)["scores"]["miou"] for line in capsys.readouterr().out.splitlines()]
    assert told == [0.75, 0.25]


def test_curves_leave_out_what_was_not_measured() -> None:
    lines = [{"step": 1, "x": 0.5}, {"step": 2}, {"step": 3, "x": float("nan")}, {"step": 4, "x": 0.25}]
    assert curve(lines, "x") == [[1, 50.0], [4, 25.0]]


def test_darkened_by_hand() -> None:
    picture = np.full((1, 3, 3), 100, np.uint8)
    assert darkened(picture, np.array([[0.0, 0.5, 1.0]]))[0, :, 0].tolist() == [40, 70, 100]


# -- the command -------------------------------------------------------------------------------------------------------


def test_from_two_folders_to_predictions(segue: Segue, dataset: Path, target: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = (segue, dataset, f"{target}:train", out, "--val", f"{target}:val", "--json", "--limit=100",
                 "--class-limit=100", "--looks=2")  # fmt: skip
    status, output, errors = adapt(*arguments)
    assert status == 0, errors
    found = json.loads(output)
    assert (found["release"], found["kept"], found["model"]) == (True, "adapted", str(out / "model"))
    assert "source_only: validation mIoU" in errors
    assert errors.index("source_only") < errors.index("mean_teacher: validation")
    for name in ("run.json", "decision.json", "report.html", "model/model.yaml", "baseline/model/model.yaml"):
        assert (out / name).is_file(), name
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    looks = [line for line in lines if "val/entropy" in line]
    assert [line["step"] for line in looks] == [4, 8]
    assert {"val/information", "val/agreement", "val/drift", "val/credible", "val/miou"} <= set(looks[-1])
    assert any("consistency" in line for line in lines)
    assert "consistency" not in (out / "baseline" / "log.jsonl").read_text()
    page = (out / "report.html").read_text()
    for text in (
        "What the gate kept",
        "The source in the target",
        "Pictures of the target",
        "source_only",
        "Released",
        "Among the source",
    ):
        assert text in page, text
    assert page.count("data:image/jpeg") >= 3 * 6 + 6
    status, output, _ = segue("evaluate", out, "--json")
    assert status == 0
    assert json.loads(output)["scores"]["miou"] == pytest.approx(found["scores"]["miou"])
    status, output, _ = segue("predict", out, target / "images", "--out", tmp_path / "predicted")
    assert status == 0
    assert "10 of 10 images written" in output
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    status, _, errors = adapt(*arguments)
    assert status == 0
    assert errors.count("finished before") == 2
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_harmful_pair_leaves_the_source_only_model(segue: Segue, dataset: Path, tmp_path: Path) -> None:
    """The unrelated target is grey fog, in whose style nothing can be seen; ``val`` holds scenes like the source's."""
    fog = tmp_path / "fog"
    fog.mkdir()
    for i in range(4):
        picture = np.random.default_rng(i).normal(128, 2, (48, 48, 1)).repeat(3, 2).astype(np.uint8)
        Image.fromarray(picture).save(fog / f"{i}.png")
    out = tmp_path / "run"
    harmful = {"steps": 60, "style": "covariance", "gate": "none", "lr": 0.1, "passes": 1, "looks": 1}
    arguments = (segue, f"{dataset}:train", fog, out, "--val", f"{dataset}:val", "--json")
    status, output, errors = adapt(*arguments, **harmful)  # type: ignore[arg-type]
    assert status == 3, errors
    found = json.loads(output)
    assert (found["release"], found["kept"]) == (False, "source_only")
    assert found["scores"] == json.loads((out / "baseline" / "evaluation.json").read_text())["scores"]
    assert "NEGATIVE TRANSFER, not for release" in errors
    page = (out / "report.html").read_text()
    assert '<p class="headline warn">NEGATIVE TRANSFER, not for release' in page
    kept, plain, adapted = (load_model(str(path)).state_dict() for path in (out, out / "baseline", out / "rejected"))
    assert all(torch.equal(kept[name], plain[name]) for name in plain)
    assert not all(torch.equal(kept[name], adapted[name]) for name in adapted)
    shown = [model_of(Arm.read("method", out)), model_of(Arm.read("baseline", out / "baseline"))]
    assert shown == [out / "rejected", out / "baseline"]  # the report's pictures are of what its scores are of
    status, output, _ = segue("evaluate", out, "--json")
    baseline = json.loads((out / "baseline" / "evaluation.json").read_text())["scores"]["miou"]
    assert json.loads(output)["scores"]["miou"] == pytest.approx(baseline)
    assert adapt(*arguments, **harmful)[0] == 3  # type: ignore[arg-type]  # finished before, and still harmful


@pytest.mark.slow
def test_without_labels_of_the_target(segue: Segue, dataset: Path, target: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    status, output, errors = adapt(segue, dataset, target / "images", out, "--json", keep="information", looks=3)
    assert status == 0, errors
    found = json.loads(output)
    assert (found["release"], found["scores"]) == (None, None)
    assert "no validation images, nothing is claimed" in errors
    assert "nothing is claimed of accuracy" in (out / "report.html").read_text()
    assert len([line for line in (out / "log.jsonl").read_text().splitlines() if "val/entropy" in line]) == 3
    status, _, errors = segue("evaluate", out)
    assert status == 2
    assert "name the data set: --data" in errors


@pytest.mark.slow
def test_inverted_light_is_learnt_by_both_and_shown(segue: Segue, dataset: Path, target: Path, tmp_path: Path) -> None:
    runs = [tmp_path / "plain", tmp_path / "inverted"]
    for out, invert in zip(runs, (0.0, 1.0), strict=True):
        status, _, errors = adapt(segue, dataset, f"{target}:train", out, invert=invert, steps=2, looks=1)
        assert status == 0, errors
        assert ("learnt from, inverted" in (out / "report.html").read_text()) == (invert > 0)
    for name in ("model", "baseline/model"):
        one, other = (load_model(str(out / name)).state_dict() for out in runs)
        assert not all(torch.equal(one[key], other[key]) for key in one), name


@pytest.mark.slow
def test_the_kept_teacher_is_that_of_the_best_look(dataset: Path, target: Path, tmp_path: Path) -> None:
    """A teacher that was kept is not the last one, where an earlier look was better."""
    found = {}
    for keep in ("last", "entropy"):
        out = library.adapt(str(dataset), f"{target}:train", tmp_path / keep, quiet=True, device="cpu",
                            precision="fp32", keep=keep, passes=1, looks=4, **{**TINY, "lr": 0.3})  # fmt: skip
        found[keep] = load_model(str(out)).state_dict()
        looks = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines() if "val/entropy" in line]
    best = min(looks, key=lambda line: line["val/entropy"])
    is_last = best["step"] == looks[-1]["step"]
    same = all(torch.equal(found["last"][name], found["entropy"][name]) for name in found["last"])
    assert same == is_last
    saved = torch.load(tmp_path / "entropy" / "adapt.pt", weights_only=True)
    state = saved.get("state", saved)["method"]
    assert float(state["best"]) == pytest.approx(-best["val/entropy"])


@pytest.mark.slow
def test_several_sources_and_a_map(segue: Segue, dataset: Path, target: Path, tmp_path: Path) -> None:
    other = night(tmp_path / "other", train=3)
    for path in (other / "images").iterdir():
        with Image.open(path) as image:
            Image.fromarray(255 - np.array(image)).save(path)
    (tmp_path / "maps.yaml").write_text("".join(f"{name}: {name}\n" for name in CLASSES))
    status, _, errors = segue(
        "adapt", "--source", dataset, other, "--target", f"{target}:train", "--out", tmp_path / "run", *RUN,
        *options(passes=1, map=tmp_path / "maps.yaml", steps=4),
    )  # fmt: skip
    assert status == 0, errors
    assert "(6 labelled)" in errors
    assert "(3 labelled)" in errors


@pytest.mark.slow
def test_settings_of_a_run_are_taken_again(segue: Segue, dataset: Path, target: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    assert adapt(segue, dataset, f"{target}:train", first, steps=2, looks=1)[0] == 0
    status, _, errors = segue("adapt", "--config", first / "config.yaml", "--out", tmp_path / "second", *RUN)
    assert status == 0, errors
    for name in ("model", "baseline/model"):
        paths = [tmp_path / run / name / "model.safetensors" for run in ("first", "second")]
        assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("band", 0.5, "--band 0.5"),
        ("passes", 0, "--passes 0"),
        ("dropout", 1, "--dropout 1"),
        ("gate", "maybe", '"gate"'),
        ("gate_shares", "0.3", '"gate_shares"'),
        ("gate_shares", "0.3,1.2", "--gate_shares"),
        ("invert", 2, "--invert 2"),
        ("gate_softness", 0, "--gate_softness 0"),
        ("noise", -1, "--noise -1"),
        ("weight", -1, "--weight -1"),
        ("ramp", 2, "--ramp 2"),
        ("ema_decay", 1, "--ema_decay 1"),
        ("looks", 0, "--looks 0"),
        ("limit", -1, "--limit -1"),
        ("class_limit", -1, "--class_limit -1"),
        ("style", "cyclegan", '"style"'),
        ("crop", 40, "--crop 40"),
        ("sorce", "x", "did you mean --source"),
    ],
)
def test_wrong_values_are_one_line_and_write_nothing(
    segue: Segue, dataset: Path, tmp_path: Path, option: str, value: object, message: str
) -> None:
    out = tmp_path / "run"
    status, _, errors = segue("adapt", "--source", dataset, "--target", dataset, "--out", out, f"--{option}={value}")
    assert status == 2
    assert message in errors
    assert len(errors.strip().splitlines()) == 1
    assert not out.exists()


@pytest.mark.slow
def test_domains_that_do_not_fit_write_nothing(segue: Segue, dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for arguments, message in (
        (("--target", dataset), "name both domains"),
        (("--source", dataset), "name both domains"),
        (("--source", dataset, "--target", dataset), "E125 --source and --target are one set"),
        (("--source", dataset, "--target", tmp_path / "nowhere"), "nowhere"),
    ):
        status, _, errors = segue("adapt", *arguments, "--out", out)
        assert (status, len(errors.strip().splitlines())) == (2, 1), errors
        assert message in errors
        assert not out.exists()


@pytest.mark.slow
def test_adaptation_beats_source_only_on_dark_pictures(tmp_path: Path) -> None:
    """Discs and bars by day, to the same kind of scene by night: the claim of the method, at the same steps."""
    source = write_set(tmp_path / "day", train=40, val=1, test=1, size=64)
    target = night(tmp_path / "night", train=40, val=20, test=1, size=64)
    out = library.adapt(
        f"{source}:train", f"{target}:train", tmp_path / "run", val=f"{target}:val", quiet=True, device="cpu",
        precision="fp32", lr=0.1, passes=1, looks=1, style="lab", **{**TINY, "crop": 48, "steps": 250, "batch": 6},
    )  # fmt: skip
    plain, adapted = (
        json.loads((folder / "evaluation.json").read_text())["scores"]["miou"] for folder in (out / "baseline", out)
    )
    assert adapted > plain + 0.2, (plain, adapted)


@pytest.mark.slow
def test_two_processes_adapt_and_the_first_decides(dataset: Path, target: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    fields = options(passes=1, looks=2, steps=4, limit=100, class_limit=100)
    done = torchrun("-m", "segue", "adapt", "--source", str(dataset), "--target", f"{target}:train",
                    "--val", f"{target}:val", "--out", str(out), *RUN, *fields, "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert json.loads(line)["release"] is True
    assert (out / "report.html").is_file()
