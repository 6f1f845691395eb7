"""`python -m gan.curves`: the table against metrics.jsonl, the picture by its pixels, refusals."""

import csv
import io
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from training_support import ROOT, TINY, environment, train, write_aligned

from gan.curves import BOTTOM, COLOURS, HEAD, HEIGHT, LEFT, RIGHT, TOP, WIDTH, as_csv, as_png

SCRIPT = "import sys, gan.curves; print('torch' in sys.modules)"


def curves(*arguments: object, code: int = 0) -> str:
    """The real command; what it printed, or its one line where it should fail."""
    command = [sys.executable, "-m", "gan.curves", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    if code:
        [line] = done.stderr.splitlines()
        assert line.startswith("error: ") and not done.stdout
        return line
    assert done.stderr == ""
    return done.stdout


def line(step: int, **values: float | None) -> dict[str, Any]:
    return {"kind": "train", "step": step, "epoch": 1, "losses": values, "lr": 0.5}


def measured(step: int, **values: float | None) -> dict[str, Any]:
    return {"kind": "metrics", "step": step, "epoch": 1, "metrics": values}


def write_log(folder: Path, *records: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("curves")
    data = write_aligned(root / "data")
    where = ["--dataroot", data, "--name", "r", "--checkpoints_dir", root / "runs", "--n_epochs", 2]
    outcome = train(*where, *TINY, "--model", "pix2pix")
    assert outcome.code == 0, outcome.err
    return root / "runs" / "r"


def test_the_table_holds_what_the_log_holds(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "curves.csv"
    assert curves("r", "--checkpoints_dir", run.parent, "--output", target) == f"{target}\n"
    with target.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [int(row["epoch"]) for row in rows] == [1, 1, 1, 2, 2, 2]
    found = {
        (int(row["step"]), name): float(text)
        for row in rows
        for name, text in row.items()
        if text and name not in ("step", "epoch")
    }
    expected = {}
    for text in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(text)
        for table in ("losses", "metrics"):
            expected |= {(record["step"], name): value for name, value in record.get(table, {}).items()}
        expected |= {(record["step"], "lr"): record["lr"]} if "lr" in record else {}
    assert found == expected and (6, "val_l1") in found and (5, "val_l1") not in found


def test_a_value_that_is_not_finite_is_an_empty_cell() -> None:
    rows = list(csv.reader(io.StringIO(as_csv([line(1, G=None, D=2.5), measured(1, fid=3.0)]))))
    assert rows == [["step", "epoch", "lr", "G", "D", "fid"], ["1", "1", "0.5", "", "2.5", "3.0"]]


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def is_colour(picture: np.ndarray, number: int) -> np.ndarray:
    """Where a picture has the colour of a chart's n-th curve, nearly."""
    colour = [int(COLOURS[number][i : i + 2], 16) for i in (1, 3, 5)]
    return np.abs(picture - colour).max(axis=2) < 12


def test_a_curve_is_where_its_values_are() -> None:
    """G_A falls from 1 to 0 over 100 steps, D_A stays at 1: read off the pixels, against the axes."""
    data = as_png("run", [line(step, G_A=1 - step / 100, D_A=1.0) for step in range(0, 101, 5)])
    picture = pixels(data)
    assert picture.shape == (HEAD + HEIGHT, WIDTH, 3)
    axes = picture[HEAD + TOP : HEAD + HEIGHT - BOTTOM + 1, LEFT : WIDTH - RIGHT + 1]
    falling, level = is_colour(axes, 0), is_colour(axes, 1)
    height, width = falling.shape
    scale = 0.06 + 1  # the axis goes from 0 to 1 and a margin
    for share in (0.125, 0.375, 0.625, 0.875):
        column = round(share * (width - 1))
        rows = np.flatnonzero(falling[:, column])
        assert abs(rows.mean() - (height - 1) * (1 - (1 - share) / scale)) < 2.5
        rows = np.flatnonzero(level[:, column])
        assert abs(rows.mean() - (height - 1) * (1 - 1 / scale)) < 2.5


def test_every_chart_has_its_place_and_its_legend() -> None:
    names = ("G_A", "D_A", "cycle_A", "idt_B", "surprise")
    records = [line(step, **dict.fromkeys(names, step / 10)) for step in range(1, 300)]
    records += [
        measured(step, fid=90.0 - step / 10, fid_A=80.0, fid_B=85.0, kid=0.05) for step in (100, 200, 299)
    ]
    picture = pixels(as_png("run", records))
    assert picture.shape == (HEAD + 3 * HEIGHT, 2 * WIDTH, 3), "losses of three kinds, fid, kid"
    for number, count in enumerate((2, 2, 1, 3, 1)):
        top, left = HEAD + number // 2 * HEIGHT, number % 2 * WIDTH
        chart = picture[top : top + HEIGHT, left : left + WIDTH]
        legend = chart[36:40]
        assert [bool(is_colour(legend, n).any()) for n in range(4)] == [n < count for n in range(4)]
        assert (chart[4:26].min(axis=2) < 80).any(), "a title"
        assert (chart[TOP : HEIGHT - BOTTOM, : LEFT - 8].min(axis=2) < 160).any(), "labels of the axis"
        assert (chart[HEIGHT - 20 :].min(axis=2) < 160).any(), "the word step"
    assert (picture[HEAD + 2 * HEIGHT :, WIDTH:] == 255).all(), "an empty place"
    assert (picture[:HEAD].min(axis=2) < 80).any(), "the run's name"


@pytest.mark.parametrize(
    "records",
    [
        [line(1, G_A=1.0)],
        [line(0, G_A=0.0)],
        [line(step, G_A=7.0) for step in range(1, 4)],
        [line(step, G_A=1e-310 * step, G_B=5e-324) for step in range(1, 4)],
        [line(1, G_A=1e308), line(2, G_A=-1e308), line(3, G_A=1.0), line(4, G_A=10**400)],
        [line(10**400, G_A=1.0), line(-3, G_A=2.0), line(3, G_A=1.5)],
        [line(step, G_A=-1e29 * step, G_B=None) for step in range(1, 500)],
        [line(1, G_A=1.0, G_B=math.nextafter(1.0, 2.0))],
        [measured(3, **{"<svg>\n\u202e": 1.0, "x" * 5000: 2.0})],
    ],
)
def test_whatever_the_log_holds_is_drawn(records: list[dict[str, Any]]) -> None:
    assert pixels(as_png("run", records)).shape[0] >= HEAD + HEIGHT


def test_the_real_command_draws(run: Path, tmp_path: Path) -> None:
    curves(run, "--output", tmp_path / "curves.PNG")
    with Image.open(tmp_path / "curves.PNG") as picture:
        assert picture.format == "PNG" and picture.size == (2 * WIDTH, HEAD + 2 * HEIGHT)


def test_refusals(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "c.csv"
    empty = write_log(tmp_path / "empty", {"kind": "event", "step": 1, "epoch": 1, "message": "hello"})
    (tmp_path / "file").write_text("")
    assert "run: is missing (name a run, and --output FILE)" in curves("--output", target, code=2)
    assert "--output: is missing" in curves(run, code=2)
    assert "--output: is c.pdf (name a file that ends in .csv or .png)" in curves(
        run, "--output", "c.pdf", code=2
    )
    assert "is no run" in curves(tmp_path / "nothing", "--output", target, code=2)
    assert "has no losses or metrics yet" in curves(empty, "--output", target, code=2)
    assert "file" in curves(run, "--output", tmp_path / "file" / "c.csv", code=2)
    assert "--outptu" in curves(run, "--outptu", target, code=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file"]


def test_it_needs_no_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout == "False\n", done.stderr
