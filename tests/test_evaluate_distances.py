"""Fréchet distance and KID against closed forms and other libraries' code."""

import numpy as np
import pytest
import scipy.linalg

from evaluate import fid as kernel
from evaluate.fid import (
    FeatureRows,
    Gaussian,
    fid,
    frechet_distance,
    gaussian_from_features,
    squared_mmd,
)


def _features(count: int, width: int, seed: int) -> np.ndarray:
    """Correlated, decaying features, as networks give them."""
    draw = np.random.default_rng(seed)
    mixing = np.random.default_rng(7).standard_normal((width, width)) * np.logspace(0, -2, width)
    return draw.standard_normal((count, width)) @ mixing + draw.standard_normal(width) * 0.1


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return fid(FeatureRows.of(a), FeatureRows.of(b))


def kid(fakes: np.ndarray, reals: np.ndarray, **options: int) -> float:
    return kernel.kid(FeatureRows.of(fakes), FeatureRows.of(reals), **options)


def _by_sqrtm(a: np.ndarray, b: np.ndarray) -> float:
    """The textbook formula."""
    s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    shift = a.mean(0) - b.mean(0)
    return float(shift @ shift + np.trace(s) + np.trace(t) - 2 * np.trace(scipy.linalg.sqrtm(s @ t)).real)


def test_full_rank_against_sqrtm_and_pytorch_fid() -> None:
    a, b = _features(300, 40, 1), _features(400, 40, 2)
    assert _distance(a, b) == pytest.approx(_by_sqrtm(a, b), rel=1e-9)
    theirs = pytest.importorskip("pytorch_fid.fid_score").calculate_frechet_distance
    moments = [x for f in (a, b) for x in (f.mean(0), np.cov(f, rowvar=False))]
    assert _distance(a, b) == pytest.approx(theirs(*moments), rel=1e-6)


@pytest.mark.parametrize(("n", "m"), [(2, 2), (5, 300), (20, 30)])
def test_fewer_images_than_features(n: int, m: int) -> None:
    """Against S^(1/2) T S^(1/2), taken in the subspace that the samples span."""
    a, b = _features(n, 64, 1), _features(m, 64, 2)
    basis = np.linalg.qr(np.concatenate([a - a.mean(0), b - b.mean(0)]).T)[0]
    s, t = (np.cov(x @ basis, rowvar=False) for x in (a, b))
    values, vectors = np.linalg.eigh(s)
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    middle = np.linalg.eigvalsh(root @ t @ root).clip(min=0)
    shift = a.mean(0) - b.mean(0)
    expected = shift @ shift + np.trace(s) + np.trace(t) - 2 * np.sqrt(middle).sum()
    assert _distance(a, b) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(("n", "width"), [(10, 2048), (100, 20)])
def test_identical_sets_give_zero(n: int, width: int) -> None:
    a = _features(n, 32, 1) @ np.random.default_rng(0).standard_normal((32, width))
    assert _distance(a, a) == pytest.approx(0.0, abs=1e-9 * float(np.sum(np.var(a, axis=0))))


def test_diagonal_gaussians() -> None:
    """Commuting covariances: the sum of squared differences of standard deviations."""
    s, t = np.array([1.0, 4.0, 0.0, 1e-3]), np.array([9.0, 4.0, 1.0, 0.0])
    a, b = (Gaussian(np.zeros(4), np.diag(x**0.5)) for x in (s, t))
    assert frechet_distance(a, b) == pytest.approx(float(((s**0.5 - t**0.5) ** 2).sum()))


def test_large_sides_take_the_fast_way_and_agree() -> None:
    """1100 features: above SVD_LIMIT, against singular values computed directly."""
    a, b = (gaussian_from_features(FeatureRows.of(_features(1300, 1100, seed))) for seed in (1, 2))
    nuclear = np.linalg.svd(a.factor @ b.factor.T, compute_uv=False).sum()
    shift = a.mean - b.mean
    expected = shift @ shift + (a.factor**2).sum() + (b.factor**2).sum() - 2 * nuclear
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-6)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        gaussian_from_features(FeatureRows.of(np.zeros((1, 4))))
    with pytest.raises(ValueError, match="finite"):
        gaussian_from_features(FeatureRows.of(np.array([[0.0, np.nan], [1.0, 1.0]])))
    with pytest.raises(ValueError, match="finite"):
        kid(np.array([[np.inf], [0.0]]), np.zeros((2, 1)))


def test_mmd_by_definition() -> None:
    """The double sums written out."""
    a, b = _features(6, 5, 1), _features(8, 5, 2)

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / 5 + 1) ** 3)

    within_a = [kernel(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j]
    within_b = [kernel(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j]
    across = [kernel(x, y) for x in a for y in b]
    expected = np.mean(within_a) + np.mean(within_b) - 2 * np.mean(across)
    assert squared_mmd(a, b) == pytest.approx(float(expected), rel=1e-12)


def test_kid_of_one_whole_subset_against_torchmetrics() -> None:
    image = pytest.importorskip("torchmetrics.image.kid", reason="torchmetrics is not installed")
    import torch

    a, b = _features(40, 64, 1), _features(40, 64, 2)
    theirs = image.poly_mmd(torch.from_numpy(a), torch.from_numpy(b))
    assert kid(a, b) == pytest.approx(float(theirs), rel=1e-9)


def test_kid_against_torch_fidelity() -> None:
    metric = pytest.importorskip("torch_fidelity.metric_kid", reason="torch-fidelity is not installed")
    import torch

    a, b = _features(120, 64, 1), _features(90, 64, 2)
    found = metric.kid_features_to_metric(
        torch.from_numpy(a), torch.from_numpy(b), kid_subset_size=90, kid_subsets=400, verbose=False,
        rng_seed=2020, kid_kernel="poly", kid_kernel_poly_degree=3, kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1,
    )  # fmt: skip
    mean = found[metric.KEY_METRIC_KID_MEAN]
    spread = found[metric.KEY_METRIC_KID_STD] / 400**0.5
    assert kid(a, b, subsets=400) == pytest.approx(mean, abs=5 * spread)


def test_kid_subsets_are_seeded_and_unbiased() -> None:
    a, b = _features(150, 16, 1), _features(130, 16, 1)
    assert kid(a, b, seed=1) == kid(a, b, seed=1) != kid(a, b, seed=2)
    assert kid(a, b, subsets=300) == pytest.approx(squared_mmd(a, b), abs=0.02)
