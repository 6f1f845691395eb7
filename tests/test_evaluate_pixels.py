"""PSNR, SSIM and L1 against scikit-image and values worked out by hand."""

import math
import tracemalloc

import numpy as np
import pytest

from evaluate import pixels


def _pair(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    a = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
    b = np.clip(a.astype(int) + draw.integers(-50, 50, a.shape), 0, 255).astype(np.uint8)
    return a, b


def test_psnr_by_hand() -> None:
    a, b = np.full((4, 4, 3), 100, np.uint8), np.full((4, 4, 3), 110, np.uint8)
    assert pixels.psnr(a, b) == pytest.approx(20 * math.log10(25.5))  # error 10 of 255 everywhere
    assert pixels.psnr(a, a) == math.inf
    assert pixels.l1(a, b) == pytest.approx(10 / 255)
    black, white = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)
    assert pixels.l1(black, white) == pixels.l1(white, black) == 1.0  # differences of uint8 do not wrap


@pytest.mark.parametrize("size", [(11, 11), (16, 40), (65, 33)])
def test_against_skimage(size: tuple[int, int]) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    a, b = _pair(*size)
    assert pixels.psnr(a, b) == pytest.approx(metrics.peak_signal_noise_ratio(a, b), rel=1e-12)
    theirs = metrics.structural_similarity(
        a, b, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
    )
    assert pixels.ssim(a, b) == pytest.approx(theirs, abs=1e-7)


def test_strips_give_the_same_as_the_whole_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large pictures are never in float64 as a whole; a strip has a row of 33 pixels here, or three and a rest."""
    a, b = _pair(64, 33)
    whole = [metric(a, b) for metric in (pixels.psnr, pixels.ssim, pixels.l1)]
    for strip in (1, 100):
        monkeypatch.setattr(pixels, "STRIP", strip)
        assert [metric(a, b) for metric in (pixels.psnr, pixels.ssim, pixels.l1)] == pytest.approx(
            whole, rel=1e-12
        )


def test_memory_of_large_pictures_is_that_of_a_strip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "STRIP", 2**14)
    a, b = np.zeros((1024, 1024, 3), np.uint8), np.ones((1024, 1024, 3), np.uint8)  # in float64 25 MB each
    tracemalloc.start()
    try:
        for metric in (pixels.psnr, pixels.ssim, pixels.l1):
            metric(a, b)
        assert tracemalloc.get_traced_memory()[1] < 15_000_000
    finally:
        tracemalloc.stop()


def test_range_does_not_matter() -> None:
    a, b = _pair(20, 20)
    scaled = [x.astype(np.float64) / 255 for x in (a, b)]
    for metric in (pixels.psnr, pixels.ssim, pixels.l1):
        assert metric(*scaled, data_range=1.0) == pytest.approx(metric(a, b), rel=1e-9)


def test_shapes_are_checked() -> None:
    a, b = _pair(16, 16)
    with pytest.raises(ValueError, match="different shape"):
        pixels.psnr(a, b[:, :8])
    with pytest.raises(ValueError, match="11x11"):
        pixels.ssim(a[:10], b[:10])


def test_pixel_accuracy_is_a_share_of_pixels() -> None:
    """The largest difference of a pixel's channels decides, up to 16 of 255; strips of a large picture add up."""
    a = np.full((600, 700, 3), 100, np.uint8)
    b = a.copy()
    b[:, :70] = 116  # still right
    b[:200, 350:, 1] = 83  # 17 in one channel: wrong
    b[599, :, 2] = 255
    expected = 1 - (200 * 350 + 700) / (600 * 700)
    assert pixels.pixel_accuracy(a, b) == pytest.approx(expected, abs=1e-12)
    assert pixels.pixel_accuracy(b, a) == pixels.pixel_accuracy(a, b) and pixels.pixel_accuracy(a, a) == 1.0
    with pytest.raises(ValueError, match="different shape"):
        pixels.pixel_accuracy(a, b[:10])
