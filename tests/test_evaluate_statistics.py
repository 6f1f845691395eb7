"""Fréchet statistics as files: against NumPy, against pytorch-fid in both directions, and refusals."""

import hashlib
import io
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from evaluate_support import aligned_data, asked, evaluate, make_run, random_inception_state, write_pictures
from numpy.typing import NDArray
from pytorch_fid import fid_score
from pytorch_fid.fid_score import calculate_frechet_distance, compute_statistics_of_path
from training_support import ROOT, environment

from datasets.errors import UserError
from evaluate.command import run_evaluation
from evaluate.features import FEATURES, Networks
from evaluate.fid import FeatureRows, Gaussian, fid
from evaluate.statistics import load_statistics, save_statistics


@pytest.fixture(autouse=True)
def elsewhere(nothing_from_outside: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(random_inception_state(), path)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("pictures")
    return write_pictures(root / "fake", 5, 1, (24, 24)), write_pictures(root / "real", 6, 2, (24, 24))


class SmallNetworks:
    """Features that are eight means of the pixels: fast, and known."""

    @staticmethod
    def of(images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, (2, 2)).flatten(1)[:, :8]


@pytest.fixture
def few_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FEATURES, "fid", replace(FEATURES["fid"], width=8))
    monkeypatch.setattr(Networks, "features", lambda self, kind, images: SmallNetworks.of(images))


def features(count: int, width: int = 8, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=(count, width))


@pytest.mark.parametrize("count", [3, 50])
def test_the_file_holds_mean_and_covariance(count: int, tmp_path: Path) -> None:
    """Fewer pictures than features, and more; read back, and by pytorch-fid's own reader."""
    rows = features(count)
    save_statistics(tmp_path / "s.npz", FeatureRows.of(rows), "i2i-1/24/RGB", "1" * 64)
    with np.load(tmp_path / "s.npz", allow_pickle=False) as stored:
        assert np.allclose(stored["mu"], rows.mean(axis=0), rtol=0, atol=1e-14)
        assert np.allclose(stored["sigma"], np.cov(rows, rowvar=False), rtol=0, atol=1e-13)
        assert stored["mu"].dtype == stored["sigma"].dtype == np.float64
    mu, sigma = compute_statistics_of_path(str(tmp_path / "s.npz"), None, 1, 8, "cpu")
    assert np.allclose(mu, rows.mean(axis=0), rtol=0, atol=1e-14)
    again = load_statistics(tmp_path / "s.npz", 8)
    assert (again.pictures, again.count, again.weights) == ("i2i-1/24/RGB", count, "1" * 64)
    others = features(40, seed=1)
    ours = fid(FeatureRows.of(others), again.gaussian)
    theirs = calculate_frechet_distance(others.mean(axis=0), np.cov(others, rowvar=False), mu, sigma)
    assert ours == pytest.approx(theirs, rel=1e-3) and ours == pytest.approx(
        fid(FeatureRows.of(others), FeatureRows.of(rows)), rel=1e-6
    )


class SmallInception(torch.nn.Module):
    """In the place of pytorch-fid's network: images (N, 3, H, W) in [0, 1] -> [(N, 8, 1, 1)]."""

    BLOCK_INDEX_BY_DIM: ClassVar = {8: 0}

    def __init__(self, blocks: list[int]) -> None:
        super().__init__()

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [SmallNetworks.of(images * 255)[:, :, None, None]]


def test_pytorch_fid_and_this_program_read_each_others_files(
    folders: tuple[Path, Path],
    inception: Path,
    few_features: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its own functions and ours on the same pictures; both with a small network, and all else as it is."""
    monkeypatch.setattr(fid_score, "InceptionV3", SmallInception)
    fake, real = folders
    known: dict[str, Any] = {"inception_weights": inception, "allow_unverified": True, "metrics": "fid"}

    def measured(real: Path, **more: Any) -> tuple[dict[str, Any], str]:
        place = tmp_path / f"out-{real.stem}"
        [row] = evaluate(fake=fake, real=real, output=place, **known, **more)["rows"]
        return row, capsys.readouterr().out

    plain, _ = measured(real, save_stats=tmp_path / "ours.npz")
    value = plain["values"]["fid"]
    by_them = fid_score.calculate_fid_given_paths([str(fake), str(real)], 50, "cpu", 8, num_workers=0)
    assert value == pytest.approx(by_them, rel=1e-3) and value > 0.01

    row, out = measured(tmp_path / "ours.npz")
    assert row["values"]["fid"] == pytest.approx(value, rel=1e-6)
    assert row["n_real"] == 6 and "only FID can be computed" in out and "does not say" not in out
    assert row["statistics_sha256"] == hashlib.sha256((tmp_path / "ours.npz").read_bytes()).hexdigest()
    paths = [str(fake), str(tmp_path / "ours.npz")]
    assert fid_score.calculate_fid_given_paths(paths, 50, "cpu", 8, num_workers=0) == pytest.approx(by_them)

    fid_score.save_fid_stats([str(real), str(tmp_path / "theirs.npz")], 50, "cpu", 8, num_workers=0)
    row, out = measured(tmp_path / "theirs.npz")
    assert row["values"]["fid"] == pytest.approx(value, rel=1e-4)
    assert row["n_real"] == 0 and "it does not say of which pictures" in out and "FID of 5 images" in out


def test_the_real_command_refuses_in_one_line(tmp_path: Path) -> None:
    write_pictures(tmp_path / "fake", 2, 1, (24, 24))
    (tmp_path / "s.npz").write_bytes(npz(mu=np.zeros(5), sigma=np.eye(5)))
    command = [
        "-m",
        "evaluate",
        "--fake",
        tmp_path / "fake",
        "--real",
        tmp_path / "s.npz",
        "--output",
        tmp_path / "out",
    ]
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == "", done.stderr
    [line] = done.stderr.splitlines()
    assert "s.npz: mu has shape (5,), sigma (5, 5); FID has 2048 features" in line
    assert not (tmp_path / "out").exists()


def call(folders: tuple[Path, Path], **more: Any) -> None:
    flags = {"fake": folders[0], "real": folders[1], "metrics": "fid", "output": Path("out"), **more}
    run_evaluation(asked(**flags))


@pytest.fixture
def stats(folders: tuple[Path, Path], inception: Path, few_features: None, tmp_path: Path) -> Path:
    """A file of eight features of the real pictures."""
    path = tmp_path / "stats.npz"
    call(folders, save_stats=path, inception_weights=inception, allow_unverified=True)
    return path


def test_by_default_the_metrics_that_need_no_real_pictures(
    folders: tuple[Path, Path], inception: Path, stats: Path, tmp_path: Path
) -> None:
    report = evaluate(
        fake=folders[0], real=stats, inception_weights=inception, allow_unverified=True, output=tmp_path / "a"
    )
    [row] = report["rows"]
    assert list(row["values"]) == ["fid"] and (row["n_fake"], row["n_real"]) == (5, 6)
    assert "real" not in row["file_list_hashes"]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another metric": ({"metrics": "fid,kid"}, "--metrics kid: needs pictures that are not given"),
    "pixels": ({"metrics": "psnr"}, "--metrics psnr: needs pictures that are not given"),
    "pairs": ({"paired": True}, "--paired: needs the real pictures"),
    "intervals": ({"bootstrap": 20}, "--bootstrap: needs the real pictures"),
    "saving them again": ({"save_stats": Path("b.npz")}, "--save_stats: needs the real pictures"),
    "another size": (
        {"size": 32},
        "holds statistics of i2i-1/24x24/RGB, and these pictures are i2i-1/32/RGB",
    ),
    "grey": ({"grey": True}, "these pictures are i2i-1/24x24/L"),
    "pictures alone": (
        {"per_image": True},
        "--per_image: none of the metrics has a value for a single picture",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(
    name: str, folders: tuple[Path, Path], inception: Path, stats: Path, tmp_path: Path
) -> None:
    more, reason = REFUSED[name]
    with pytest.raises(UserError) as refused:
        call(folders, **{
            "real": stats, "inception_weights": inception, "allow_unverified": True, "output": tmp_path / "new", **more,
        })  # fmt: skip
    assert reason in str(refused.value)
    assert not (tmp_path / "new").exists() and not (tmp_path / "b.npz").exists()


def test_other_weights_are_refused(folders: tuple[Path, Path], stats: Path, tmp_path: Path) -> None:
    torch.save(random_inception_state(seed=9), tmp_path / "other.pth")
    with pytest.raises(UserError, match="holds statistics by other Inception weights"):
        call(folders, real=stats, inception_weights=tmp_path / "other.pth", allow_unverified=True)


def test_what_cannot_be_saved_is_refused(
    folders: tuple[Path, Path], inception: Path, few_features: None, tmp_path: Path
) -> None:
    known = {"inception_weights": inception, "allow_unverified": True, "output": tmp_path / "new"}
    (tmp_path / "there.npz").write_text("mine")
    for path, more, reason in (
        (tmp_path / "there.npz", {}, "exists already, and nothing is overwritten"),
        (tmp_path / "stats.txt", {}, "name a file that ends in .npz"),
        (tmp_path / "none" / "s.npz", {}, "no such folder"),
        (tmp_path / "s.npz", {"metrics": "psnr", "paired": True, "real": folders[0]}, "fid is not computed"),
        (tmp_path / "s.npz", {"metrics": "", "inception_weights": None}, "pt_inception"),
    ):
        with pytest.raises(UserError) as refused:
            call(folders, save_stats=path, **{**known, **more})
        assert reason in str(refused.value)
    assert (tmp_path / "there.npz").read_text() == "mine" and not (tmp_path / "new").exists()
    assert not (tmp_path / "s.npz").exists() and not (tmp_path / "none").exists()


def test_of_a_run(inception: Path, few_features: None, tmp_path: Path) -> None:
    """The test pictures of the target domain at the training size; two directions are two sets."""
    run = make_run(tmp_path, aligned_data(tmp_path / "data"), "p2p", "pix2pix")
    known: dict[str, Any] = {"metrics": "fid", "inception_weights": inception, "allow_unverified": True}
    evaluate(runs=run, save_stats=tmp_path / "s.npz", **known)
    found = load_statistics(tmp_path / "s.npz", 8)
    assert (found.pictures, found.count) == ("i2i-1/32/RGB", 3)
    pixels = [np.asarray(evaluated(path)) for path in sorted((tmp_path / "data/test").iterdir())]
    expected = SmallNetworks.of(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)).double().numpy()
    assert np.allclose(found.gaussian.mean, expected.mean(axis=0), atol=1e-6)
    both = make_run(tmp_path, tmp_path / "data", "cyc", "cycle_gan", dataset_mode="aligned")
    with pytest.raises(UserError, match="--save_stats: the rows have different real pictures"):
        run_evaluation(asked(runs=both, save_stats=tmp_path / "t.npz", **known))


def evaluated(path: Path) -> Any:
    from PIL import Image

    return Image.open(path).crop((32, 0, 64, 32))


def npz(**arrays: Any) -> bytes:
    data = io.BytesIO()
    np.savez(data, **arrays)
    return data.getvalue()


def bomb() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mu.npy", b"\0" * (2**27 + 1))
        archive.writestr("sigma.npy", b"")
    return data.getvalue()


def lying() -> bytes:
    """A header that speaks of terabytes, and no data."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (2**40, 2**10)}
    )
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("mu.npy", header.getvalue())
        archive.writestr("sigma.npy", header.getvalue())
    return data.getvalue()


EYE, ZERO = np.eye(8), np.zeros(8)
BROKEN: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"<html>",
    "cut off": lambda: npz(mu=ZERO, sigma=EYE)[:300],
    "no sigma": lambda: npz(mu=ZERO),
    "other names": lambda: npz(m=ZERO, s=EYE),
    "another number of features": lambda: npz(mu=np.zeros(2048), sigma=np.eye(2048)),
    "one dimension": lambda: npz(mu=ZERO, sigma=ZERO),
    "whole numbers": lambda: npz(mu=np.zeros(8, int), sigma=np.eye(8, dtype=int)),
    "complex": lambda: npz(mu=ZERO, sigma=EYE.astype(complex)),
    "objects": lambda: npz(mu=np.array([None] * 8, object), sigma=EYE),
    "not finite": lambda: npz(mu=ZERO, sigma=EYE * np.nan),
    "not symmetric": lambda: npz(mu=ZERO, sigma=EYE + np.eye(8, k=1)),
    "negative": lambda: npz(mu=ZERO, sigma=-EYE),
    "a bomb": bomb,
    "a lie": lying,
}


@pytest.mark.parametrize("name", BROKEN)
def test_other_files_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "s.npz").write_bytes(BROKEN[name]())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError) as refused:
            load_statistics(tmp_path / "s.npz", 8)
    assert str(tmp_path / "s.npz") in str(refused.value) and len(str(refused.value)) < 300


def test_a_missing_file_and_a_float32_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_statistics(tmp_path / "none.npz", 8)
    rows = features(30)
    arrays = {"mu": rows.mean(axis=0), "sigma": np.cov(rows, rowvar=False)}
    (tmp_path / "s.npz").write_bytes(
        npz(**{name: array.astype(np.float32) for name, array in arrays.items()})
    )
    found = load_statistics(tmp_path / "s.npz", 8)
    assert (found.count, found.pictures) == (0, "") and isinstance(found.gaussian, Gaussian)
    assert np.allclose(found.gaussian.factor.T @ found.gaussian.factor, arrays["sigma"], atol=1e-6)
