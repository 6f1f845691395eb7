"""Fréchet statistics of real pictures as a file in pytorch-fid's layout: `--save_stats FILE`, `--real FILE.npz`.

`mu` (d,) and `sigma` (d, d) are mean and covariance of Inception's features, as `python -m pytorch_fid --save-stats`
writes them. Files of this program also say what they were computed from, which pytorch-fid does not read: `pictures`
(version, size and colours), `count`, and `weights` (SHA-256). Without these, nothing but the shapes can be checked.
"""

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets.errors import UserError, file_error
from datasets.files import require_file, require_writable, write_atomically
from evaluate.fid import FeatureRows, Gaussian, factor_of, gaussian_from_features

LARGEST = 2**27  # bytes of an array in the file: four times a covariance of 2048 features in float64


@dataclass(frozen=True)
class Statistics:
    """What FID needs of real pictures. pictures, count, weights: empty or 0 where the file does not say."""

    gaussian: Gaussian
    pictures: str = ""
    count: int = 0
    weights: str = ""


def save_statistics(path: Path, features: FeatureRows, pictures: str, weights: str) -> None:
    """Write the statistics of (n, d) features, whole or not at all. Raises UserError where that fails."""
    gaussian, data = gaussian_from_features(features), io.BytesIO()
    np.savez_compressed(
        data,
        mu=gaussian.mean,
        sigma=gaussian.factor.T @ gaussian.factor,
        pictures=pictures,
        count=features.count,
        weights=weights,
    )
    try:
        write_atomically(path, data.getvalue())
    except OSError as error:
        raise file_error(error, path, "written") from error


def require_new_statistics(path: Path) -> None:
    """Raise UserError unless `save_statistics` can write this file: `.npz`, not there yet, in a folder for writing."""
    if path.suffix != ".npz":
        raise UserError("--save_stats", f"is {path}", "name a file that ends in .npz")
    if path.exists() or path.is_symlink():
        raise UserError(path, "exists already, and nothing is overwritten", "choose another --save_stats")
    if not path.absolute().parent.is_dir():
        raise UserError(path.parent, "no such folder", "make it first")
    require_writable(path.absolute().parent)


def load_statistics(path: Path, width: int) -> Statistics:
    """Read a file of `mu` (width,) and `sigma` (width, width); never code.

    Raises UserError for anything else: other shapes, numbers that are not finite, what is no covariance, a file that is
    no .npz or too large.
    """
    require_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {
                name: _array(archive, name)
                for name in ("mu", "sigma", "pictures", "count", "weights")
                if f"{name}.npy" in archive.namelist()
            }
    except OSError as error:
        raise file_error(error, path, "read") from error
    except Exception as error:  # of zipfile, zlib, NumPy: whatever a file makes them raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(path, f"is no file of statistics: {reason}", HOW) from error
    if missing := {"mu", "sigma"} - arrays.keys():
        raise UserError(path, f"is no file of statistics: it has no {min(missing)}", HOW)
    mean, covariance = arrays["mu"], arrays["sigma"]
    if mean.shape != (width,) or covariance.shape != (width, width):
        reason = f"mu has shape {mean.shape}, sigma {covariance.shape}; FID has {width} features here"
        raise UserError(path, reason, HOW)
    if not (mean.dtype.kind == covariance.dtype.kind == "f"):
        raise UserError(path, f"holds {mean.dtype} and {covariance.dtype}", HOW)
    mean, covariance = mean.astype(np.float64), covariance.astype(np.float64)
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(path, "holds numbers that are not finite", HOW)
    gaussian = Gaussian(mean, factor_of(covariance))
    back, spread = gaussian.factor.T @ gaussian.factor, float(np.abs(covariance).max())
    if not np.allclose(back, covariance, rtol=0, atol=1e-4 * spread):
        raise UserError(path, "its sigma is no covariance", HOW)
    count = arrays.get("count", np.array(0))
    return Statistics(
        gaussian,
        str(arrays.get("pictures", "")),
        int(count) if count.shape == () and count.dtype.kind in "iu" else 0,
        str(arrays.get("weights", "")),
    )


HOW = "write one with --save_stats, or with pytorch-fid's --save-stats"


def _array(archive: zipfile.ZipFile, name: str) -> NDArray:
    """An array of an .npz. ValueError where it is too large or not plain."""
    entry = archive.getinfo(f"{name}.npy")
    if entry.file_size > LARGEST:
        raise ValueError(f"{name} has {entry.file_size:,} bytes")
    with archive.open(entry) as file:
        data = io.BytesIO(file.read(LARGEST))
    return np.asarray(np.lib.format.read_array(data, allow_pickle=False))
