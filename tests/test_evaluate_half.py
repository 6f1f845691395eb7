"""Inception in float16: used only where it was seen to keep FID, and never mixed with float32."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_evaluate_networks import random_inception_state
from test_evaluate_passes import FewFeatures, write_pictures
from torch import Tensor

from datasets.errors import UserError
from evaluate import command
from evaluate.cache import FeatureCache
from evaluate.half import error_of_half
from evaluate.metrics import Comparison
from evaluate.networks import Networks
from evaluate.options import EvaluateOptions
from evaluate.passes import Measurements
from evaluate.pictures import folder_pictures
from evaluate.weights import Weights


class Rounded(FewFeatures):
    """Stands for float16: the same features, scaled. FID is quadratic, so it is off by scale^2 - 1."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    @property
    def inception_digest(self) -> str:
        return f"scaled {self.scale}"

    def inception_features(self, name: str, images: Tensor) -> Tensor:  # type: ignore[override]
        return super().inception_features(name, images) * self.scale


def measurements(scale: float) -> Measurements:
    return Measurements(FeatureCache(None), Rounded(scale))


@pytest.fixture
def row(tmp_path: Path) -> Comparison:
    fakes, reals = (folder_pictures(write_pictures(tmp_path / str(s), 6, s), None) for s in (1, 2))
    return Comparison("row", "", fakes, reals)


def test_float16_features_are_close_and_kept_apart() -> None:
    weights = Weights(random_inception_state(), "3" * 64, Path("inception.pth"), False)
    full, half = (Networks(weights, None, None, half=half) for half in (False, True))
    draws = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (1, 3, 40, 40), generator=draws, dtype=torch.uint8)
    with torch.inference_mode():
        exact, rounded = (networks.inception_features("fid", images) for networks in (full, half))
    assert exact.dtype == rounded.dtype == torch.float32
    error = float(torch.linalg.norm(rounded - exact) / torch.linalg.norm(exact))
    assert 1e-5 < error < 1e-2  # rounded, and no more than that
    assert full.inception_digest != half.inception_digest


def test_error_is_measured_on_the_pictures(row: Comparison) -> None:
    half = measurements(1.001)
    assert error_of_half([row], ["kid"], measurements(1.0), half) == pytest.approx(1.001**2 - 1, rel=1e-3)
    assert error_of_half([row], ["psnr"], measurements(1.0), half) == 0.0
    assert error_of_half([row], ["fid_clean"], measurements(1.0), measurements(float("inf"))) == np.inf


@pytest.mark.parametrize(("scale", "serves"), [(1.0001, True), (1.01, False)])
def test_report_says_which_precision_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: Comparison, scale: float, serves: bool
) -> None:
    def networks(*arguments: object) -> Networks:
        return Rounded(scale if arguments[-1] else 1.0)

    monkeypatch.setattr(command, "Networks", networks)
    monkeypatch.setattr(command, "weights_for", lambda *_: ({"inception": Weights({}, "", Path(), True)}, {}))
    monkeypatch.setattr(command, "find_device", lambda _: torch.device("cuda"))
    fake, real = (tmp_path / str(seed) for seed in (1, 2))
    options = EvaluateOptions(fake=fake, real=real, metrics="fid", output=tmp_path / "out", no_cache=True)
    plain = command.build_report(options).rows[0].values["fid"]
    half = EvaluateOptions(**{**vars(options), "half": True})
    assert command.run_evaluation(half) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    expected = plain * scale**2 if serves else plain
    assert report["rows"][0]["values"]["fid"] == pytest.approx(expected, rel=1e-6)
    assert report["protocol"]["id"].endswith("/float16") == serves
    assert ("computed in float32" in report["notes"][0]) != serves
    if serves:
        with pytest.raises(UserError, match=r"holds a report of protocol .*float16"):
            command.run_evaluation(options)


def test_needs_a_cuda_gpu(tmp_path: Path) -> None:
    options = EvaluateOptions(fake=tmp_path, real=tmp_path, half=True, device="cpu")
    with pytest.raises(UserError, match="--half: is for CUDA GPUs, the device is cpu"):
        command.build_report(options)


@pytest.mark.cuda
def test_both_precisions_on_a_gpu_agree_with_the_cpu() -> None:
    weights = Weights(random_inception_state(), "3" * 64, Path("inception.pth"), False)
    draws = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (4, 3, 40, 40), generator=draws, dtype=torch.uint8)
    gpu = torch.device("cuda")
    with torch.inference_mode():
        exact = Networks(weights, None, None).inception_features("fid", images)
        for half, largest in ((False, 1e-5), (True, 1e-2)):
            found = Networks(weights, None, None, gpu, half).inception_features("fid", images)
            assert torch.linalg.norm(found - exact) < largest * torch.linalg.norm(exact), half
