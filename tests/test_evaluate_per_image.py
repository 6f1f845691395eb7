"""`--per_image`: rows against the metrics computed by hand, the page of the worst and the best."""

import base64
import csv
import html
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluate_support import asked, evaluate, make_run, random_trunk, write_pictures
from PIL import Image
from training_support import ROOT

from datasets.errors import UserError
from evaluate import pixels
from evaluate.command import run_evaluation

COUNT = 24


@pytest.fixture(autouse=True)
def elsewhere(nothing_from_outside: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    torch.save(random_trunk(), path)
    return path


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Outputs and targets of equal names; output n is its target with noise of strength n, 0 is equal to it."""
    real = write_pictures(tmp_path / "real", COUNT, 1, (32, 32))
    draw = np.random.default_rng(2)
    (tmp_path / "fake").mkdir()
    for number, path in enumerate(sorted(real.iterdir())):
        target = np.asarray(Image.open(path)).astype(float)
        noise = draw.normal(0, 4 * number, target.shape)
        Image.fromarray((target + noise).clip(0, 255).astype(np.uint8)).save(tmp_path / "fake" / path.name)
    return tmp_path / "fake", real


def rows_of(place: Path) -> list[dict[str, str]]:
    with (place / "per_image.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_for_each_picture_and_metric(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """By the real command."""
    fake, real = folders
    command = ["--fake", fake, "--real", real, "--paired", "--per_image", "--metrics", "psnr,ssim,l1"]
    done = subprocess.run(
        [sys.executable, "-m", "evaluate", *map(str, command), "--output", str(tmp_path / "out")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = ["report.json", "report.md", "report.csv", "per_image.csv", "per_image.json", "report.html"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)
    assert all(name in done.stdout for name in names)
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 3 * COUNT
    functions = {"psnr": pixels.psnr, "ssim": pixels.ssim, "l1": pixels.l1}
    for row in rows:
        assert (row["protocol"], row["run"], row["direction"]) == ("i2i-1/32x32/files", "fake", "")
        a, b = (np.asarray(Image.open(folder / row["picture"])) for folder in folders)
        assert float(row["value"]) == functions[row["metric"]](a, b)
    assert {(row["picture"], row["metric"]) for row in rows} == {
        (path.name, metric) for path in real.iterdir() for metric in functions
    }
    stored = json.loads((tmp_path / "out" / "per_image.json").read_text())["rows"]
    assert [{**row, "value": str(row["value"])} for row in stored] == rows
    assert [row["value"] for row in stored if row["picture"] == "000.png"] == ["inf", 1.0, 0.0]
    [report] = json.loads((tmp_path / "out" / "report.json").read_text())["rows"]
    for metric in ("ssim", "l1"):
        values = [float(row["value"]) for row in rows if row["metric"] == metric]
        assert report["values"][metric] == pytest.approx(np.mean(values), rel=1e-12)


def shown(page: str) -> dict[str, Image.Image]:
    """Caption -> picture of the page's figures."""
    found = re.findall(r"<figcaption>(.*?)</figcaption><img [^>]*src=\"data:image/\w+;base64,(.*?)\"", page)
    return {html.unescape(caption): Image.open(io.BytesIO(base64.b64decode(data))) for caption, data in found}


def test_the_page_shows_the_ten_worst_and_the_ten_best(folders: tuple[Path, Path], tmp_path: Path) -> None:
    fake, real = folders
    evaluate(fake=fake, real=real, paired=True, per_image=True, metrics="psnr,l1", output=tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "i2i-1/32x32/files" in page and "PSNR (to target)" in page and "<th" in page
    figures = shown(page)
    assert list(figures) == [
        f"fake: the 10 {what} by {title} (from the top: output, target)"
        for title in ("PSNR (to target)", "L1 (to target)")
        for what in ("worst", "best")
    ]
    for metric, title in (("l1", "L1 (to target)"), ("psnr", "PSNR (to target)")):
        values = {
            row["picture"]: float(row["value"])
            for row in rows_of(tmp_path / "out")
            if row["metric"] == metric
        }
        ranked = sorted(values, key=lambda name: values[name], reverse=metric == "psnr")  # the best first
        assert ranked[0] == "000.png"
        for what, names in (("worst", ranked[::-1][:10]), ("best", ranked[:10])):
            caption = f"fake: the 10 {what} by {title} (from the top: output, target)"
            figure = np.asarray(figures[caption].convert("RGB")).astype(float)
            assert_shows(figure, [[folder / name for folder in folders] for name in names])


def assert_shows(figure: np.ndarray, columns: list[list[Path]]) -> None:
    """A figure, JPEG by now, shows these files of 32 pixels in columns."""
    gap, side = 4, 32
    head = figure.shape[0] - len(columns[0]) * (side + gap)
    assert figure.shape[1] == len(columns) * (side + gap) + gap
    for column, files in enumerate(columns):
        for line, file in enumerate(files):
            top, left = head + line * (side + gap), gap + column * (side + gap)
            cell = figure[top : top + side, left : left + side]
            assert np.abs(cell - np.asarray(Image.open(file)).astype(float)).mean() < 12, file


def test_lpips_of_a_run_in_both_directions(tmp_path: Path, trunk: Path) -> None:
    """Without targets: to the input, and the mean to all real pictures, whose mean is the metric."""
    for i, split in enumerate(("trainA", "trainB", "testA", "testB")):
        write_pictures(tmp_path / "data" / split, 3 + i, i, (32, 32))
    run = make_run(tmp_path, tmp_path / "data", "cyc", "cycle_gan")
    report = evaluate(
        runs=run, per_image=True, lpips_weights=trunk, allow_unverified=True, output=tmp_path / "out"
    )
    rows = rows_of(tmp_path / "out")
    for stored, count in zip(report["rows"], (5, 6), strict=True):
        for metric, value in stored["values"].items():
            singles = [
                float(row["value"])
                for row in rows
                if (row["direction"], row["metric"]) == (stored["direction"], metric)
            ]
            assert len(singles) == count and np.mean(singles) == pytest.approx(value, rel=1e-4)
    assert {row["metric"] for row in rows} == {"lpips_all_pairs", "lpips_input"}
    assert {row["checkpoint"] for row in rows} == {"last (epoch 1, step 4)"}
    assert {row["picture"] for row in rows if row["direction"] == "AtoB"} == {f"{i:03}.png" for i in range(5)}
    captions = list(shown((tmp_path / "out" / "report.html").read_text()))
    assert (
        captions[0]
        == "cyc, AtoB, last (epoch 1, step 4): the 2 worst by LPIPS (all pairs) (from the top: input, output)"
    )
    assert len(captions) == 8


def test_baselines_have_rows_but_no_pictures(tmp_path: Path) -> None:
    from evaluate_support import aligned_data

    run = make_run(tmp_path, aligned_data(tmp_path / "data"), "p2p", "pix2pix")
    evaluate(runs=run, per_image=True, baselines=True, metrics="l1", output=tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 4 * 3 and sum(row["run"].startswith("baseline: ") for row in rows) == 9
    assert all(
        caption.startswith("p2p, AtoB") for caption in shown((tmp_path / "out" / "report.html").read_text())
    )


@pytest.mark.parametrize("metrics", ["fid", "fid,kid"])
def test_metrics_of_whole_sets_alone_are_refused(
    metrics: str, folders: tuple[Path, Path], tmp_path: Path, inception: Path
) -> None:
    flags: dict[str, Any] = {
        "fake": folders[0],
        "real": folders[1],
        "metrics": metrics,
        "output": tmp_path / "out",
    }
    with pytest.raises(UserError, match="--per_image: none of the metrics has a value for a single picture"):
        run_evaluation(asked(**flags, per_image=True, inception_weights=inception, allow_unverified=True))
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from evaluate_support import random_inception_state

    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(random_inception_state(), path)
    return path


def test_without_the_flag_nothing_more_is_written(folders: tuple[Path, Path], tmp_path: Path) -> None:
    evaluate(fake=folders[0], real=folders[1], paired=True, metrics="l1", output=tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "report.csv",
        "report.json",
        "report.md",
    ]
