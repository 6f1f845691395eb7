"""Metrics while training: numbers from validation pictures, without side effects on the training."""

from pathlib import Path

import numpy as np
import pytest
import torch
from evaluate_support import FewFeatures
from torch import Tensor
from training_support import TINY, records, train, write_aligned

from datasets.errors import UserError
from datasets.images import to_picture
from evaluate import pixels
from evaluate.fid import FeatureRows, fid
from evaluate.training import TrainingMetrics, make_evaluator
from gan.viewers.visdom_panes import Board

pytestmark = pytest.mark.usefixtures("nothing_from_outside")


def _pictures(count: int, seed: int, channels: int = 3, side: int = 40) -> Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def _evaluator(flags: str) -> TrainingMetrics:
    return TrainingMetrics(flags.split(","), FewFeatures())


def _arrays(images: Tensor) -> np.ndarray:
    """(N, H, W, 3): as the pictures are in files."""
    return np.stack([np.asarray(to_picture(image).convert("RGB")) for image in images])


def test_pix2pix_pictures() -> None:
    images = {"input": _pictures(5, 1), "fake": _pictures(5, 2) * 1.3, "target": _pictures(5, 3)}
    evaluator = _evaluator("fid,fid_clean,kid,lpips,psnr,ssim,l1")
    found = evaluator(images)
    fakes, targets = _arrays(images["fake"]), _arrays(images["target"])
    assert found["psnr"] == pytest.approx(
        np.mean([pixels.psnr(a, b) for a, b in zip(fakes, targets, strict=True)])
    )
    networks = evaluator.networks
    features = [
        networks.features("fid", torch.from_numpy(x).permute(0, 3, 1, 2)).numpy() for x in (fakes, targets)
    ]
    assert found["fid"] == pytest.approx(fid(*map(FeatureRows.of, features)), rel=1e-9)
    assert list(found) == ["fid", "fid_clean", "kid", "lpips", "psnr", "ssim", "l1"]


def test_cyclegan_pictures_have_both_sides_and_their_mean() -> None:
    kinds = ("input_A", "fake_B", "rec_A", "input_B", "fake_A", "rec_B")
    images = {kind: _pictures(4, i, channels=1 + 2 * (i % 2)) for i, kind in enumerate(kinds)}
    found = _evaluator("fid,lpips,psnr")(images)
    assert set(found) == {"fid", "fid_A", "fid_B", "lpips", "lpips_A", "lpips_B"}
    assert found["fid"] == pytest.approx((found["fid_A"] + found["fid_B"]) / 2)


def test_real_features_are_computed_once() -> None:
    evaluator = _evaluator("fid,kid")
    images = {"fake": _pictures(5, 2), "target": _pictures(5, 3)}
    evaluator(images)
    evaluator({"fake": _pictures(5, 4), "target": images["target"]})
    assert evaluator.networks.seen["fid"] == 3 * 5  # type: ignore[attr-defined]


def test_the_trainings_random_numbers_are_not_touched() -> None:
    evaluator = _evaluator("fid,kid,lpips,psnr")
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(3), np.random.rand()
    torch.manual_seed(5)
    np.random.seed(5)
    evaluator({"fake": _pictures(5, 2), "target": _pictures(5, 3)})
    assert torch.equal(torch.rand(3), expected[0]) and np.random.rand() == expected[1]


def test_missing_weights_cost_one_warning(capsys: pytest.CaptureFixture[str]) -> None:
    """Unless they are those of the metric that chooses the best checkpoint."""
    evaluator = make_evaluator("fid,kid,lpips,psnr,l1", best_by="val_l1", offline=True)
    found = evaluator({"fake": _pictures(2, 1), "target": _pictures(2, 2)})
    assert set(found) == {"psnr", "l1"}
    assert len(capsys.readouterr().err.splitlines()) == 1
    for best_by in ("fid", "fid_A", "lpips"):
        with pytest.raises(UserError, match="missing; https://"):
            make_evaluator("fid,lpips,psnr", best_by=best_by, offline=True)


def test_too_small_or_too_few_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    evaluator = _evaluator("fid,lpips,ssim,l1")
    assert set(evaluator({"fake": _pictures(1, 1, side=8), "target": _pictures(1, 2, side=8)})) == {"l1"}
    evaluator({"fake": _pictures(1, 1, side=8), "target": _pictures(1, 2, side=8)})
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_unknown_metric() -> None:
    for text in ("fid,what", " ,"):
        with pytest.raises(UserError, match=r"^--eval_metrics: (unknown metric what|names no metric)"):
            make_evaluator(text)


def test_counts_stand_beside_the_metrics_of_a_training(tmp_path: Path) -> None:
    """In metrics.jsonl; the viewers print them from there."""
    data = write_aligned(tmp_path / "data", count=4)
    flags = ["--dataroot", data, "--name", "r", "--checkpoints_dir", tmp_path, "--model", "pix2pix", *TINY]
    more = ["--n_epochs", 2, "--eval_every", 2, "--eval_metrics", "l1", "--val_count", 3]
    assert train(*flags, *more).code == 0
    first, second = [line for line in records(tmp_path / "r") if line["kind"] == "metrics"]
    assert set(first["metrics"]) == {"val_l1"} and "n_fake" not in first
    assert set(second["metrics"]) == {"val_l1", "l1"} and (second["n_fake"], second["n_real"]) == (3, 3)
    board = Board()
    board.add(second | {"metrics": {"fid": 80.0}})
    assert board.panes["metric_fid"].title == "fid, n_fake 3, n_real 3"
