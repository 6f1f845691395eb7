"""--tensorboard: its event files read back with TensorBoard's own reader; faults of every kind stop no training."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from training_support import (
    ROOT,
    TINY,
    Outcome,
    command,
    environment,
    last_state,
    records,
    start,
    train,
    write_aligned,
)

pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ON = ["--tensorboard", "on"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_aligned(tmp_path_factory.mktemp("data") / "a")


def flags(data: Path, runs: Path, *more: object) -> list[object]:
    return ["--dataroot", data, "--name", "r", "--checkpoints_dir", runs, *TINY, "--model", "pix2pix", *more]


def go_on(runs: Path, *more: object) -> Outcome:
    return train("--name", "r", "--checkpoints_dir", runs, "--continue_train", *more)


def read_back(run: Path) -> EventAccumulator:
    """What TensorBoard would show: everything of all event files, later ones replacing what was lost."""
    found = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    return found.Reload()


def scalars(found: EventAccumulator) -> dict[str, list[tuple[int, float]]]:
    tags = found.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in tags}


def logged(run: Path) -> dict[str, list[tuple[int, float]]]:
    """The same by hand from metrics.jsonl, in float32, as the files hold it."""
    values: dict[str, list[tuple[int, float]]] = {}
    for line in (json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()):
        tables = [(f"{part}/", line.get(part, {})) for part in ("losses", "metrics", "time")]
        for prefix, table in [*tables, ("", {"lr": line["lr"]} if "lr" in line else {})]:
            for name, value in table.items():
                values.setdefault(prefix + name, []).append((line["step"], float(np.float32(value))))
    return values


def test_the_real_command_writes_what_the_log_holds(data: Path, tmp_path: Path) -> None:
    arguments = flags(data, tmp_path, "--n_epochs", 2, *ON)
    done = subprocess.run(
        command("train", *arguments), cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr and "TensorFlow" not in done.stderr
    run = tmp_path / "r"
    found = read_back(run)
    expected = logged(run)
    assert scalars(found) == expected
    assert {"losses/G_GAN", "losses/G_L1", "metrics/val_l1", "time/images_per_s", "lr"} <= expected.keys()
    steps = [line["step"] for line in records(run) if line["kind"] == "samples"]
    assert found.Tags()["images"] == ["samples"]
    images = found.Images("samples")
    assert [event.step for event in images] == steps == [3, 6]
    for event in images:
        shown = Image.open(io.BytesIO(event.encoded_image_string))
        grid = Image.open(run / "samples" / f"step-{event.step:08d}" / "grid.png").convert("RGB")
        assert shown.size == grid.size == (event.width, event.height)
        error = np.abs(np.asarray(shown, float) - np.asarray(grid, float))
        assert error.mean() < 8, "the same picture, as JPEG"


def test_off_it_writes_nothing_and_loads_nothing(data: Path, tmp_path: Path) -> None:
    script = (
        "import sys, runpy; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path('train.py', run_name='__main__')\n"
        "finally: print([m for m in sys.modules if m.split('.')[0] == 'tensorboard' or m == 'gan.viewers.tensorboard'])"
    )
    arguments = [str(a) for a in flags(data, tmp_path, "--n_epochs", 1)]
    done = subprocess.run(
        [sys.executable, "-c", script, "train.py", *arguments],
        cwd=ROOT, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert not (tmp_path / "r" / "tensorboard").exists()


def test_a_killed_training_continues_its_curves(data: Path, tmp_path: Path) -> None:
    """What was written after the last checkpoint is forgotten, and nothing before it is missing."""
    process = start("train", *flags(data, tmp_path, "--n_epochs", 500, "--save_epoch_freq", 2, *ON))
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("epoch 3/500  step 8"):  # between the checkpoints of steps 6 and 12
                break
    finally:
        process.kill()
        process.communicate()
    run = tmp_path / "r"
    before = scalars(read_back(run))
    assert before["losses/G_L1"][:7] == logged(run)["losses/G_L1"][:7]
    epochs = last_state(run)["position"]["epoch"] + 1  # two more than are saved
    outcome = go_on(tmp_path, "--n_epochs", epochs)
    assert outcome.code == 0, outcome.err
    assert len(list((run / "tensorboard").iterdir())) == 2
    found = read_back(run)
    assert scalars(found) == logged(run)
    assert [step for step, _ in logged(run)["lr"]] == list(range(1, 3 * epochs + 1))
    assert [event.step for event in found.Images("samples")] == list(range(3, 3 * epochs + 1, 3))


def test_switched_on_later_it_shows_the_curves_from_the_beginning(data: Path, tmp_path: Path) -> None:
    assert train(*flags(data, tmp_path, "--n_epochs", 2)).code == 0
    assert go_on(tmp_path, "--n_epochs", 3, *ON).code == 0
    run = tmp_path / "r"
    found = read_back(run)
    assert scalars(found) == logged(run)
    assert [event.step for event in found.Images("samples")] == [9]


@pytest.mark.parametrize("fault", ["a file in its place", "the disk is full", "a broken installation"])
def test_a_failing_writer_stops_no_training(
    fault: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault == "a file in its place":
        (tmp_path / "r").mkdir()
        (tmp_path / "r" / "tensorboard").write_text("mine")
    elif fault == "the disk is full":
        real = Path.open

        def full(path: Path, *arguments: Any, **named: Any) -> Any:
            if "tfevents" in path.name:
                return real(Path("/dev/full"), "wb")
            return real(path, *arguments, **named)

        if not Path("/dev/full").exists():
            pytest.skip("no /dev/full on this system")
        monkeypatch.setattr(Path, "open", full)
    else:
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    outcome = train(*flags(data, tmp_path, "--n_epochs", 1, *ON))
    assert outcome.code == 0, outcome.err
    [warning] = [line for line in outcome.err.splitlines() if line.startswith("warning")]
    assert warning.startswith("warning: TensorBoard stopped: ") and "training continues without it" in warning
    assert len(records(tmp_path / "r")) == 5 and "Traceback" not in outcome.err
    if fault == "a file in its place":
        assert (tmp_path / "r" / "tensorboard").read_text() == "mine"


def test_without_the_package_one_line_at_the_start(data: Path, tmp_path: Path) -> None:
    """In a real process in which the package cannot be found; nothing has been made by then."""
    script = (
        "import sys, runpy, importlib.machinery as m\n"
        "real = m.PathFinder.find_spec\n"
        "m.PathFinder.find_spec = lambda name, *a: None if name == 'tensorboard' else real(name, *a)\n"
        "sys.argv = sys.argv[1:]; runpy.run_path('train.py', run_name='__main__')"
    )
    arguments = [str(a) for a in flags(data, tmp_path, "--n_epochs", 1, *ON)]
    done = subprocess.run(
        [sys.executable, "-c", script, "train.py", *arguments],
        cwd=ROOT, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        "error: --tensorboard: the package tensorboard is not installed (pip install tensorboard)\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_the_stored_switch_is_read_again(data: Path, tmp_path: Path) -> None:
    """YAML reads a bare `on` as true."""
    assert train(*flags(data, tmp_path, "--n_epochs", 1, *ON)).code == 0
    assert "tensorboard: 'on'" in (tmp_path / "r" / "options.yaml").read_text()
    copied = shutil.copytree(tmp_path / "r", tmp_path / "copy")
    options = (copied / "options.yaml").read_text().replace("tensorboard: 'on'", "tensorboard: on")
    (copied / "options.yaml").write_text(options)
    arguments = ["--name", "copy", "--checkpoints_dir", tmp_path, "--continue_train", "--n_epochs", 2]
    assert train(*arguments).code == 0
    assert [step for step, _ in scalars(read_back(copied))["lr"]] == [1, 2, 3, 4, 5, 6]
