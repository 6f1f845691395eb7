"""The networks of FID and LPIPS against the packages that define them, with random weights where none can be had."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluate_support import lpips_heads, random_inception_state
from PIL import Image
from torch import Tensor, nn

from evaluate import lpips
from evaluate.features import InceptionPool, Networks, resize_bilinear, resize_clean, scale_clean
from evaluate.weights import SOURCES, Weights, WeightsChoice, load_weights


@pytest.fixture(scope="module")
def inception_state() -> dict[str, Tensor]:
    return random_inception_state()


@pytest.fixture(scope="module")
def images() -> Tensor:
    """(4, 3, 40, 56) uint8."""
    draws = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (4, 3, 40, 56), generator=draws, dtype=torch.uint8)


def pytorch_fid_network(monkeypatch: pytest.MonkeyPatch, state: dict[str, Tensor]) -> nn.Module:
    """Theirs, given the state in place of its download."""
    inception = pytest.importorskip("pytorch_fid.inception")
    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *args, **kwargs: state)
    return inception.InceptionV3([3]).eval()


def test_inception_equals_pytorch_fid(
    monkeypatch: pytest.MonkeyPatch, inception_state: dict[str, Tensor], images: Tensor
) -> None:
    theirs = pytorch_fid_network(monkeypatch, inception_state)
    with torch.inference_mode():
        expected = theirs(images.float() / 255)[0].flatten(1)
        found = InceptionPool(inception_state)(resize_bilinear(images))
    assert found.shape == (4, 2048)
    assert torch.linalg.norm(found - expected) < 1e-5 * torch.linalg.norm(expected)


def test_clean_resize_equals_clean_fid() -> None:
    resize = pytest.importorskip("cleanfid.resize", reason="clean-fid is not installed")
    picture = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    theirs = resize.build_resizer("clean")(picture)
    assert np.abs(resize_clean(picture) - theirs).max() < 1e-4


def test_clean_resize_of_a_constant_and_of_a_step() -> None:
    """A constant stays, a step does not overshoot out of the range, and nothing is rounded to 8 bits."""
    flat = resize_clean(np.full((64, 64, 3), 77, np.uint8))
    assert flat.shape == (299, 299, 3) and np.allclose(flat, 77)
    step = np.zeros((64, 64, 3), np.uint8)
    step[:, 32:] = 255
    resized = resize_clean(step)
    assert resized.min() >= 0 and resized.max() <= 255
    assert np.any(resized != np.rint(resized))
    assert scale_clean(torch.tensor([0.0, 128.0])).tolist() == [-1.0, 0.0]


@pytest.fixture(scope="module")
def trunk_state() -> dict[str, Tensor]:
    """AlexNet's convolutions: the published ones if they are there, else random."""
    folder = os.environ.get("I2I_WEIGHTS")
    if folder and (Path(folder) / "alexnet_features.pth").exists():
        weights = load_weights(SOURCES["alexnet"], WeightsChoice(Path(folder), offline=True))
        assert weights.verified and weights.digest == SOURCES["alexnet"].digest
        return dict(weights.state)
    from torchvision.models import alexnet

    torch.manual_seed(0)
    return alexnet(weights=None).state_dict()


@pytest.fixture(scope="module")
def theirs(trunk_state: dict[str, Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """The lpips package with the same trunk."""
    package = pytest.importorskip("lpips")
    metric = package.LPIPS(net="alex", pnet_rand=True, verbose=False)
    for number, place in enumerate(lpips.CONVOLUTIONS, start=1):
        layer = getattr(getattr(metric.net, f"slice{number}"), str(place))
        layer.load_state_dict({k: trunk_state[f"features.{place}.{k}"] for k in ("weight", "bias")})
    return metric  # type: ignore[no-any-return]


def _picture_batch(count: int, seed: int, height: int = 64, width: int = 48) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 6, generator=draws)
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1) * 2 - 1


def test_lpips_equals_the_package(
    trunk_state: dict[str, Tensor], theirs: Callable[[Tensor, Tensor], Tensor]
) -> None:
    trunk, heads = lpips.AlexNetTrunk(trunk_state), lpips.heads_from_state(lpips_heads().state)
    maps = trunk(_picture_batch(2, 5))
    assert lpips.distance(maps, maps, heads).tolist() == [0.0, 0.0]
    for size in ((64, 48), (31, 31), (77, 100)):
        a, b = _picture_batch(5, 1, *size), _picture_batch(5, 2, *size)
        with torch.inference_mode():
            expected = theirs(a, b).flatten().double()
            found = lpips.distance(trunk(a), trunk(b), heads)
        assert torch.allclose(found, expected, rtol=0, atol=1e-6)
        assert lpips.map_sizes(*size) == [tuple(m.shape[2:]) for m in trunk(a)]


def test_all_pairs_mean_equals_every_pair(
    trunk_state: dict[str, Tensor], theirs: Callable[[Tensor, Tensor], Tensor]
) -> None:
    trunk, heads = lpips.AlexNetTrunk(trunk_state), lpips.heads_from_state(lpips_heads().state)
    a, b = _picture_batch(7, 3), _picture_batch(5, 4)
    with torch.inference_mode():
        expected = np.mean([float(theirs(x[None], y[None])) for x in a for y in b])
        sum_a = lpips.feature_sum(trunk(a[:4]), heads) + lpips.feature_sum(trunk(a[4:]), heads)
        sum_b = lpips.feature_sum(trunk(b), heads)
        weights = lpips.head_vector(heads, lpips.map_sizes(64, 48))
        found = lpips.all_pairs_mean(sum_a, sum_b, weights)
    assert found == pytest.approx(float(expected), abs=1e-6)


def test_the_authors_example_values(trunk_state: dict[str, Tensor]) -> None:
    """0.722 and 0.138, as published with the metric."""
    examples, weights = os.environ.get("I2I_LPIPS_EXAMPLES"), os.environ.get("I2I_WEIGHTS")
    if not examples or not weights:
        pytest.skip(
            "set I2I_LPIPS_EXAMPLES to a folder with ex_ref.png, ex_p0.png, ex_p1.png, and I2I_WEIGHTS"
        )
    trunk, heads = lpips.AlexNetTrunk(trunk_state), lpips.heads_from_state(lpips_heads().state)

    def maps(name: str) -> list[Tensor]:
        picture = np.asarray(Image.open(Path(examples) / name).convert("RGB"))
        return trunk(torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1)

    reference = maps("ex_ref.png")
    assert float(lpips.distance(reference, maps("ex_p0.png"), heads)) == pytest.approx(0.722, abs=5e-4)
    assert float(lpips.distance(reference, maps("ex_p1.png"), heads)) == pytest.approx(0.138, abs=5e-4)


@pytest.mark.cuda
def test_features_on_a_gpu_agree_with_the_cpu(inception_state: dict[str, Tensor], images: Tensor) -> None:
    weights = {"inception": Weights(inception_state, "3" * 64, Path("inception.pth"), False)}
    with torch.inference_mode():
        exact = Networks(weights).features("fid", images)
        found = Networks(weights, torch.device("cuda")).features("fid", images)
    assert torch.linalg.norm(found - exact) < 1e-5 * torch.linalg.norm(exact)
