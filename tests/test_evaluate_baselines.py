"""What needs no learning, against numpy's least squares and values worked out by hand."""

import numpy as np
import pytest

from evaluate.pictures import fit_colours


def test_affine_map_is_the_least_squares_solution() -> None:
    draw = np.random.default_rng(0)
    a = draw.integers(0, 256, (3, 9, 7, 3), dtype=np.uint8)
    b = np.clip(0.5 * a[..., ::-1] + draw.integers(0, 60, a.shape), 0, 255).astype(np.uint8)
    fitted = fit_colours(zip(a, b, strict=True))
    design = np.concatenate([a.reshape(-1, 3), np.ones((a.size // 3, 1))], axis=1)
    expected = np.linalg.lstsq(design, b.reshape(-1, 3).astype(float), rcond=None)[0]
    assert np.allclose(fitted.affine, expected, atol=1e-8)
    assert np.allclose(fitted.mean, b.reshape(-1, 3).mean(0))


def test_grey_inputs_have_a_solution() -> None:
    """Three equal channels leave the map undetermined; its predictions are not."""
    ramp = np.repeat(np.arange(0, 240, 2, dtype=np.uint8)[:, None, None], 3, axis=2).reshape(12, 10, 3)
    fitted = fit_colours([(ramp, 255 - ramp)])
    assert np.array_equal(fitted.affine_colour(ramp), 255 - ramp)


def test_table_has_the_mean_target_of_each_colour() -> None:
    """Two inputs of one colour with different targets: their mean. A colour never seen: as the affine map has it."""
    dark, light = np.full((4, 4, 3), 41, np.uint8), np.full((4, 4, 3), 201, np.uint8)
    fitted = fit_colours([(dark, dark), (dark, light), (light, light), (light, light)])
    assert (fitted.table_colour(dark) == 121).all() and (fitted.table_colour(light) == 201).all()
    unseen = np.full((4, 4, 3), 100, np.uint8)  # the middle of its bin: 8 levels are one
    assert np.array_equal(fitted.table_colour(unseen), fitted.affine_colour(unseen))


def test_colours_stay_in_range() -> None:
    dark, light = np.full((4, 4, 3), 100, np.uint8), np.full((4, 4, 3), 200, np.uint8)
    fitted = fit_colours([(dark, dark), (light, np.full((4, 4, 3), 255, np.uint8))])
    assert fitted.affine_colour(np.full((4, 4, 3), 255, np.uint8)).max() == 255
    with pytest.raises(ValueError, match="no training pairs"):
        fit_colours([])
