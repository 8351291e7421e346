"""The command line as a person meets it: the whole path, and every way to get it wrong."""

import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import CLASSES, options, torchrun, write_model, write_set
from PIL import Image

Segue = Callable[..., tuple[int, str, str]]


def train(segue: Segue, dataset: Path, out: Path, *more: object, **changes: object) -> tuple[int, str, str]:
    return segue("train", dataset, "--out", out, "--device", "cpu", "--precision", "fp32", *more, *options(**changes))


@pytest.fixture
def run(segue: Segue, dataset: Path, tmp_path: Path) -> Path:
    status, _, errors = train(segue, dataset, tmp_path / "run", "--method", "supervised")
    assert status == 0, errors
    return tmp_path / "run"


def test_from_a_folder_to_predictions(segue: Segue, dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    status, output, errors = train(
        segue, dataset, out, "--compare", "--json", labels=4, unlabeled="rest", threshold=0.0
    )
    assert status == 0, errors
    assert "using 4 labelled and 2 unlabelled images to train, 2 to validate; left out of 6 found: nothing" in errors
    assert re.search(r"pixel_contrast: validation mIoU \d+\.\d % over 3 of 3 classes on 2 images", errors)
    assert re.search(r"supervised: validation mIoU \d+\.\d", errors)
    assert json.loads(output)["model"] == str(out / "model")
    assert (out / "report.html").is_file()
    assert (out / "baseline" / "model" / "model.safetensors").is_file()

    status, output, _ = segue("evaluate", out, "--split", "test", "--json")
    assert status == 0
    found = json.loads(output)
    assert np.sum(found["confusion"]) == 2 * 48 * 48
    status, output, _ = segue("evaluate", out, "--split", "test")
    assert status == 0
    assert "over 3 of 3 classes" in output

    status, output, _ = segue("predict", out, dataset / "images", "--out", tmp_path / "predicted", "--maps")
    assert status == 0
    assert "10 of 10 images written" in output
    with Image.open(tmp_path / "predicted" / "labels" / "val_006.png") as image:
        assert (image.mode, image.size) == ("P", (48, 48))

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.pt")}
    status, _, errors = train(segue, dataset, out, "--compare", labels=4, unlabeled="rest", threshold=0.0)
    assert status == 0
    assert errors.count("finished before") == 2
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*.pt")}


@pytest.mark.parametrize("words", [["train", "SET", "--method", "supervised", *options()], ["predict", "MODEL", "SET"]])
def test_a_place_where_nothing_can_be_written_is_named_in_a_line(
    segue: Segue, dataset: Path, tmp_path: Path, words: list[str]
) -> None:
    """No permission is not tested: who runs tests as root has it."""
    (tmp_path / "file").write_text("no folder")
    places = {"SET": dataset, "MODEL": write_model(tmp_path / "model")}
    status, _, errors = segue(*(places.get(word, word) for word in words), "--out", tmp_path / "file" / "run")
    assert (status, errors.splitlines()[-1]) == (1, f"error: {tmp_path / 'file' / 'run'}: Not a directory")


def test_a_run_does_not_go_on_with_other_data(segue: Segue, run: Path, dataset: Path) -> None:
    """Neither one that was cut nor one that is done: its record would be of data that it did not learn from."""
    (run / "report.html").unlink()
    mask = dataset / "labels" / "train_000.png"
    before = mask.read_bytes()
    with Image.open(mask) as image:
        image.putpixel((0, 0), (image.getpixel((0, 0)) + 1) % 3)  # type: ignore[operator]
        image.save(mask)
    status, _, errors = train(segue, dataset, run, "--method", "supervised")
    assert (status, f"lists of {dataset} have changed since it began" in errors) == (2, True)
    mask.write_bytes(before)
    listed = dataset / "dataset.json"
    known = listed.read_text()
    classes = json.loads(known)["classes"]
    listed.write_text(json.dumps({**json.loads(known), "classes": classes[::-1]}))
    status, _, errors = train(segue, dataset, run, "--method", "supervised")
    assert (status, f"the classes of {dataset} were {', '.join(classes)}, and have changed" in errors) == (2, True)
    listed.write_text(known)
    assert train(segue, dataset, run, "--method", "supervised")[0] == 0


def test_ctrl_c_is_no_traceback(segue: Segue, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("segue.using.evaluate", pressed)
    assert segue("evaluate", run) == (130, "", "stopped\n")


def test_ctrl_c_where_no_step_is_taken_says_that_the_same_command_goes_on(
    segue: Segue, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGINT)  # jobs in the background have it ignored
    monkeypatch.setattr("segue.verbs.open_training", lambda *_, **__: os.kill(os.getpid(), signal.SIGINT))
    told = "stopped by a signal; the same command goes on\n"
    assert train(segue, dataset, tmp_path / "run", "--method", "supervised") == (75, "", told)
    assert signal.getsignal(signal.SIGINT) == before


def test_a_full_gpu_is_a_line(segue: Segue, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee the docs.")

    monkeypatch.setattr("segue.using.evaluate", full)
    status, _, errors = segue("evaluate", run)
    assert (status, errors.count("\n")) == (1, 1)
    told = "(CUDA out of memory. Tried to allocate 2 GiB.): free some, or take --device cpu\n"
    assert errors == f"error: the GPU's memory is full {told}"


def test_a_class_absent_from_the_split_is_a_dash_and_not_in_the_mean(segue: Segue, run: Path, dataset: Path) -> None:
    for path in (dataset / "labels").glob("test*.png"):
        with Image.open(path) as image:
            values = np.array(image)
        Image.fromarray(np.where(values == 1, 0, values).astype(np.uint8)).save(path)
    status, output, _ = segue("evaluate", run, "--split", "test")
    assert status == 0
    assert re.search(r"disc\s*│\s*–", output)
    assert "over 2 of 3 classes" in output
    _, output, _ = segue("evaluate", run, "--split", "test", "--json")
    assert json.loads(output)["scores"]["iou/disc"] is None


def test_evaluate_prints_what_is_taken_for_what(segue: Segue, dataset: Path, tmp_path: Path) -> None:
    words = ("evaluate", write_model(tmp_path / "model"), "--data", dataset)
    counts = np.array(json.loads(segue(*words, "--json")[1])["confusion"])
    shares = counts / counts.sum(1, keepdims=True)
    status, output, _ = segue(*words)
    assert status == 0
    rows = [re.findall(r"[^│\s][^│]*[^│\s]|[^│\s]", line) for line in output.splitlines()]
    for i, name in enumerate(CLASSES):
        assert [f"{i + 1} {name}", *(f"{100 * share:.0f}" for share in shares[i])] in rows
    worst = divmod(int(np.where(np.eye(3, dtype=bool), 0, counts).argmax()), 3)
    assert [*(CLASSES[i] for i in worst), f"{100 * shares[worst]:.1f}", f"{counts[worst]:,}"] in rows


WRONG: list[tuple[list[object], str]] = [
    (["trian"], "unknown command 'trian'; did you mean train?"),
    (["train", "SET", "--out", "OUT", "--stepps", 3], "unknown option --stepps; did you mean --steps?"),
    (
        ["train", "SET", "--out", "OUT", "--method", "pixel_contrats"],
        "unknown method 'pixel_contrats'; did you mean pixel_contrast?",
    ),
    (["train", "SET"], "--out"),
    (["train", "GONE", "--out", "OUT"], "gone does not exist"),
    (["train", "SET", "--out", "OUT", "--steps", "0"], "--steps 0"),
    (["train", "SET", "--out", "OUT", "--steps", "x"], "x"),
    (["train", "SET", "--out", "OUT", "--crop", "50"], "--crop 50"),
    (["train", "SET", "--out", "OUT", "--batch", "1"], "--batch 1"),
    (["train", "SET", "--out", "OUT", "--scale", "2,1"], "--scale [2.0, 1.0]"),
    (["train", "SET", "--out", "OUT", "--labels", "40"], "--labels 40 asks for 40 of 6"),
    (["train", "SET", "--out", "OUT", "--encoder", "mobilenet_v9"], "mobilenet_v9"),
    (["train", "SET", "--out", "OUT", "--encoder", "resnet18.badtag"], "badtag"),
    (["train", "SET", "--out", "OUT", "--init", "gone.safetensors"], "gone.safetensors"),
    (["train", "SET", "--out", "OUT", "--device", "cuda:7"], "cuda:7"),
    (["train", "--unlabeled", "rest", "SET", "--out", "OUT"], "write --unlabeled=rest"),
    (["train", "SET", "--out", "OUT", "--ledger", "l.jsonl"], "name them: --unlabeled FOLDER"),
    (["train", "SET", "--out", "OUT", "--precision", "fp8"], "--precision fp8"),
    (["train", "SET", "--out", "OUT", "--seed", "x"], "'x' is no whole number"),
    (["evaluate", "GONE"], "gone holds no model"),
    (["evaluate", "SET"], "holds no model"),
    (["predict", "GONE", "SET/images", "--out", "OUT"], "gone holds no model"),
    (["predict", "GONE", "SET/gone.png", "--out", "OUT"], "gone.png: no such file"),
    (["predict", "MODEL", "SET/images", "--out", "OUT", "--map", "7:1"], "--map does nothing without --calibrate;"),
    (["evaluate", "MODEL", "--data", "SET", "--by-region"], "--by-region: a semantic model"),
    (["export", "MODEL", "--verify", "SET", "--out", "OUT", "--calibrate", "SET"], "does nothing without --int8;"),
    (
        ["export", "MODEL", "--verify", "SET", "--out", "OUT", "--max-drop", 2],
        "--max-drop does nothing without --int8;",
    ),
    (["check", "SET", "--maps", "OUT"], "--maps does nothing without --source and --target;"),
    (["data", "get", "camvidd", "--out", "OUT"], "camvid"),
    (["demo", "--sceed", "1"], "--sceed"),
    (["extend", "BASE", "--new", "SET", "--out", "OUT", "--model", "OTHER"], "--model is given twice"),
    (["compress", "T", "--data", "SET", "--out", "OUT", "--teacher=U"], "the command itself says T; leave --teacher"),
    (["compress", "T", "--data", "SET", "--out", "OUT", "--budget", "3h", "--minutes", "1"], "itself says 180"),
    (["compress", "T", "--data", "SET", "--out", "OUT", "--device", "cpu:2threads", "--threads", "1"], "itself says 2"),
    *(
        (["data", "increments", "SET", "OUT", "--plan", "GONE", *further], f"--plan says what {further[0]} would")
        for further in (["--classes", "8-3"], ["--order", "1"], ["--protocol", "overlap"])
    ),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[" ".join(map(str, a))[:60] for a, _ in WRONG])
def test_what_cannot_be_meant_is_said_in_a_line_exits_2_and_writes_nothing(
    segue: Segue, dataset: Path, tmp_path: Path, arguments: list[object], message: str
) -> None:
    places = {"SET": str(dataset), **{name: str(tmp_path / name.lower()) for name in ("OUT", "GONE", "MODEL")}}
    if "MODEL" in arguments:
        write_model(tmp_path / "model")
    filled = [re.sub(r"^(SET|OUT|GONE|MODEL)", lambda m: places[m[1]], str(argument)) for argument in arguments]
    status, output, errors = segue(*filled)
    assert status == 2
    assert message in errors
    assert sum(line.startswith("error:") for line in errors.splitlines()) == 1
    assert errors.splitlines()[-1].startswith("error:")
    assert output == ""
    assert not (tmp_path / "out").exists()


def test_faults_of_the_data_stop_training_before_anything_is_written(
    segue: Segue, dataset: Path, tmp_path: Path
) -> None:
    (dataset / "images" / "train_001.png").write_text("no")
    (dataset / "labels" / "train_002.png").unlink()
    status, _, errors = train(segue, dataset, tmp_path / "out")
    assert status == 2
    assert [line.split()[1 if i == 0 else 0] for i, line in enumerate(errors.splitlines())] == ["E106", "E111"]
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_else_is_left_alone(segue: Segue, run: Path, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    status, _, errors = train(segue, dataset, tmp_path / "mine")
    assert (status, [p.name for p in (tmp_path / "mine").iterdir()]) == (2, ["thesis.txt"])
    assert "not empty" in errors
    status, _, errors = train(segue, dataset, run, "--method", "supervised", steps=9)
    assert status == 2
    assert "steps: 8 there, 9 here" in errors
    status, _, errors = segue("predict", run, dataset / "images", "--out", tmp_path / "mine")
    assert status == 2
    assert "not an empty folder" in errors


def test_a_model_with_other_classes_is_refused(segue: Segue, run: Path, tmp_path: Path) -> None:
    other = write_set(tmp_path / "other")
    described = json.loads((other / "dataset.json").read_text())
    (other / "dataset.json").write_text(json.dumps({**described, "classes": ["ground", "bar", "disc"]}))
    status, _, errors = segue("evaluate", run, "--data", other)
    assert status == 2
    assert "same names in the same order" in errors
    for path in (other / "labels").iterdir():
        Image.fromarray(np.minimum(np.asarray(Image.open(path)), 1)).save(path)
    (other / "dataset.json").write_text(
        json.dumps({**described, "classes": ["ground", "disc"], "colors": described["colors"][:2]})
    )
    status, output, errors = segue("evaluate", run, "--data", other, "--json")
    assert status == 0, errors
    assert np.array(json.loads(output)["confusion"]).sum(1)[2] == 0
    assert json.loads(output)["classes"] == list(CLASSES)


def test_unreadable_pictures_are_named_and_the_rest_predicted(
    segue: Segue, run: Path, dataset: Path, tmp_path: Path
) -> None:
    (dataset / "images" / "train_000.png").write_bytes(b"")
    status, output, errors = segue("predict", run, dataset / "images", "--out", tmp_path / "p", "--json")
    found = json.loads(output)
    assert (status, found["found"], found["written"], len(found["failed"])) == (2, 10, 9, 1)
    assert "train_000.png is empty (0 bytes)" in errors


def test_data_list_names_terms_and_the_mirror(segue: Segue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "SHA256SUMS").write_text("")
    monkeypatch.setenv("SEGUE_MIRROR", str(tmp_path))
    status, output, _ = segue("data", "list", "--json")
    rows = {row["name"]: row for row in json.loads(output)}
    assert status == 0
    assert "BY-NC" in rows["camvid"]["licence"]
    assert rows["mine"]["in_mirror"]
    assert "licence:" in segue("data", "list")[1]


def test_help_is_quick_and_imports_no_torch() -> None:
    code = "import sys; from segue.cli import main; status = main(['--help'])"
    watched = f"import atexit, sys; atexit.register(lambda: sys.stderr.write(str('torch' in sys.modules))); {code}"
    found = subprocess.run([sys.executable, "-c", watched], capture_output=True, text=True, check=False)
    assert "train" in found.stdout
    assert found.stderr.endswith("False")
    seconds = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "segue", "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.5  # of CPU: others use it too


def test_a_full_disk_is_one_line_that_says_what_is_left(
    segue: Segue, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    status, _, errors = train(segue, dataset, tmp_path / "run", "--method", "supervised")
    assert status == 1
    assert errors.splitlines()[-1].startswith("error: [Errno 28] No space left on device")
    assert "the same command goes on" in errors


def test_a_loss_that_is_not_finite_is_one_line_that_says_what_to_do(
    segue: Segue, dataset: Path, tmp_path: Path
) -> None:
    status, _, errors = train(segue, dataset, tmp_path / "run", "--method", "supervised", lr=1e30, steps=20)
    assert status == 1
    assert "5 in a row, so the run stops. Samples: train_" in errors.splitlines()[-1]


def test_fields_of_a_method_are_listed_with_their_meaning(segue: Segue, dataset: Path) -> None:
    status, output, _ = segue("train", dataset, "--out", "x", "--fields")
    assert status == 0
    assert "--temperature" in output
    assert "0.07 in the paper" in output


@pytest.mark.parametrize("command", ["train", "adapt", "pretrain", "extend", "compress"])
def test_fields_are_listed_without_what_a_training_needs(segue: Segue, command: str) -> None:
    status, output, errors = segue(command, "--fields")
    assert (status, errors) == (0, "")
    assert output.startswith(f"usage: segue {command}")
    assert "--crop" in output


@pytest.mark.slow
def test_two_processes_train_through_the_command_line(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    fields = options(labels=3, unlabeled="rest", threshold=0.0)
    done = torchrun("-m", "segue", "train", str(dataset), "--out", str(out), "--device", "cpu", "--compare", *fields)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("; trained for ") == 2  # one process speaks, for both arms
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert len({(line["stage"], line["step"]) for line in log}) == len(log)
    assert (out / "baseline" / "model" / "model.yaml").is_file()


@pytest.mark.slow
def test_the_same_run_goes_on_however_its_folder_is_spelt(
    segue: Segue, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(dataset.parent)
    for spelt in (dataset.name, f"{dataset.name}/", f"./{dataset.name}", dataset):
        status, _, errors = train(segue, spelt, tmp_path / "run", "--method", "supervised", steps=1)
        assert status == 0, errors
    other = tmp_path / "other"
    shutil.copytree(dataset, other)
    status, _, errors = train(segue, other, tmp_path / "run", "--method", "supervised", steps=1)
    assert (status, "holds another run (data:" in errors) == (2, True)


def test_what_a_method_would_ignore_is_refused(segue: Segue, dataset: Path, tmp_path: Path) -> None:
    for words, told in (
        (("--method", "supervised", "--unlabeled", "rest"), "--unlabeled: supervised makes no use of it"),
        (("--task", "panoptic", "--unlabeled", "rest"), "--unlabeled: mask_classification makes no use of it"),
        (("--method", "supervised", "--compare"), "--compare: supervised is itself the plain training"),
    ):
        status, _, errors = segue("train", dataset, "--out", tmp_path / "run", *words)
        assert (status, errors.count("\n"), told in errors) == (2, 1, True), errors
    assert not (tmp_path / "run").exists()


def test_a_config_file_needs_no_other_option(segue: Segue, dataset: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert train(segue, dataset, first, "--method", "supervised", steps=1)[0] == 0
    words = ("train", "--config", first / "config.yaml", dataset, "--method", "supervised", "--out", second)
    status, _, errors = segue(*words, "--device", "cpu", "--steps", 2)
    assert status == 0, errors
    found = [yaml.safe_load((run / "config.yaml").read_text()) for run in (first, second)]
    assert {name for name in found[0] if found[0][name] != found[1][name]} == {"steps"}
