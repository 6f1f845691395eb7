"""The networks whose features the metrics compare, how pictures reach them, and the cache of what they computed.

The definition of Inception's patched blocks (TF-2015, FID's network) is taken from the pytorch_fid package; the weights
come from a file. For speed every convolution absorbs the batch normalisation after it (exact in real arithmetic, eval
mode only).
"""

import contextlib
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from datasets.errors import UserError, warn
from evaluate import efficientnet
from evaluate.lpips import AlexNetTrunk, heads_from_state
from evaluate.weights import SOURCES, Weights

INCEPTION_SIDE = 299  # pixels


class InceptionPool(nn.Module):
    """(N, 3, 299, 299) in [-1, 1] -> (N, 2048) float32: the features before the classifier, averaged over positions."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        """state: a state dict of `build_inception()`; RuntimeError where keys or shapes differ."""
        super().__init__()
        net = build_inception()
        net.load_state_dict(dict(state))
        net.eval().requires_grad_(False)
        for module in net.modules():  # every `BasicConv2d` is conv, bn, ReLU
            if isinstance(getattr(module, "bn", None), nn.BatchNorm2d):
                module.conv, module.bn = fuse_conv_bn_eval(module.conv, module.bn), nn.Identity()
        self.blocks = nn.Sequential(
            net.Conv2d_1a_3x3, net.Conv2d_2a_3x3, net.Conv2d_2b_3x3, nn.MaxPool2d(3, 2),
            net.Conv2d_3b_1x1, net.Conv2d_4a_3x3, nn.MaxPool2d(3, 2),
            net.Mixed_5b, net.Mixed_5c, net.Mixed_5d, net.Mixed_6a, net.Mixed_6b, net.Mixed_6c, net.Mixed_6d,
            net.Mixed_6e, net.Mixed_7a, net.Mixed_7b, net.Mixed_7c,
        )  # fmt: skip
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(images.contiguous(memory_format=torch.channels_last))  # (N, 2048, 8, 8)
        return x.mean(dim=(2, 3), dtype=torch.float32)


def build_inception() -> Any:
    """pytorch-fid's network with unset weights (torchvision's Inception v3, 1008 classes, patched blocks)."""
    from pytorch_fid import inception as blocks
    from torchvision.models import inception_v3

    net = inception_v3(num_classes=1008, aux_logits=False, weights=None, init_weights=False)
    net.Mixed_5b = blocks.FIDInceptionA(192, pool_features=32)
    net.Mixed_5c = blocks.FIDInceptionA(256, pool_features=64)
    net.Mixed_5d = blocks.FIDInceptionA(288, pool_features=64)
    net.Mixed_6b = blocks.FIDInceptionC(768, channels_7x7=128)
    net.Mixed_6c = blocks.FIDInceptionC(768, channels_7x7=160)
    net.Mixed_6d = blocks.FIDInceptionC(768, channels_7x7=160)
    net.Mixed_6e = blocks.FIDInceptionC(768, channels_7x7=192)
    net.Mixed_7b = blocks.FIDInceptionE_1(1280)
    net.Mixed_7c = blocks.FIDInceptionE_2(2048)
    return net


def resize_bilinear(images: Tensor) -> Tensor:
    """(N, 3, H, W) uint8 -> (N, 3, 299, 299) in [-1, 1], as pytorch-fid: bilinear without antialiasing."""
    side = (INCEPTION_SIDE, INCEPTION_SIDE)
    x = functional.interpolate(images.float().div_(255), size=side, mode="bilinear", align_corners=False)
    return 2 * x - 1


def resize_clean(pixels: NDArray[np.uint8], side: int = INCEPTION_SIDE) -> NDArray[np.float32]:
    """(H, W, 3) uint8 -> (side, side, 3) float32 in [0, 255]: antialiased bicubic, never rounded to 8 bits.

    As in Parmar et al. 2022, "On Aliased Resizing and Surprising Subtleties in GAN Evaluation".
    """
    size = (side, side)
    planes = [
        np.asarray(Image.fromarray(pixels[:, :, c].astype(np.float32)).resize(size, Image.Resampling.BICUBIC))
        for c in range(3)
    ]
    return np.stack(planes, axis=2).clip(0.0, 255.0)


def scale_clean(images: Tensor) -> Tensor:
    """(N, 3, 299, 299) float in [0, 255] (already resized by PIL) -> network range, as clean-fid: (x - 128) / 128."""
    return (images - 128) / 128


@dataclass(frozen=True)
class FeatureKind:
    """One way from pictures to features, `width` of them, of a network (a key of `POOLS`).

    scale: batch (N, 3, H, W) of pictures -> input of the network; resize: what is made of each picture (H, W, 3) uint8
    before it is put into a batch, in the threads that decode.
    """

    scale: Callable[[Tensor], Tensor]
    resize: Callable[[NDArray[np.uint8]], NDArray] | None = None
    network: str = "inception"
    width: int = 2048


POOLS = {"inception": InceptionPool, "efficientnet_lite0": efficientnet.EfficientNetPool}

FEATURES = {
    "fid": FeatureKind(resize_bilinear),
    "fid_clean": FeatureKind(scale_clean, resize_clean),
    "lite0": FeatureKind(
        efficientnet.scale,
        partial(resize_clean, side=efficientnet.SIDE),
        "efficientnet_lite0",
        efficientnet.WIDTH,
    ),
}
"""By name, as in the cache's keys."""


class Networks:
    """The networks of these weights, built when they are first needed."""

    def __init__(self, weights: Mapping[str, Weights], device: torch.device | None = None) -> None:
        on_cpu = device is None or device.type == "mps"  # sums are float64, which Apple's GPUs do not have
        self.device = torch.device("cpu") if on_cpu else device
        self.weights = weights
        self._pools: dict[str, nn.Module] = {}

    def width(self, kind: str) -> int:
        """The number of a picture's features."""
        return FEATURES[kind].width

    def digest(self, kind: str) -> str:
        """Identifies the network of these features, for the cache's keys."""
        return self.weights[FEATURES[kind].network].digest[:16]

    @property
    def lpips_digest(self) -> str:
        return self.weights["alexnet"].digest[:16] + self.weights["heads"].digest[:8]

    @cached_property
    def trunk(self) -> nn.Module:
        return self._built("alexnet", AlexNetTrunk)

    @cached_property
    def heads(self) -> list[Tensor]:
        """LPIPS's linear heads."""
        return [head.to(self.device) for head in heads_from_state(self.weights["heads"].state)]

    def _built(self, name: str, build: Callable[[Mapping[str, Tensor]], nn.Module]) -> nn.Module:
        """UserError naming the file where its tensors do not fit."""
        weights, source = self.weights[name], SOURCES[name]
        try:
            with torch.random.fork_rng(devices=[]):  # keeps initial weights off the training's random numbers
                return build(weights.state).to(self.device)
        except (RuntimeError, KeyError) as error:
            reason = f"tensors do not fit the network: not {source.what}"
            fix = f"see {source.flag}" if source.flag else source.remedy
            raise UserError(weights.path, reason, fix) from error

    def features(self, kind: str, images: Tensor) -> Tensor:
        """(N, width) float32 on the CPU. images: (N, 3, H, W) uint8, or what the kind's `resize` has made of them."""
        network = FEATURES[kind].network
        if network not in self._pools:
            self._pools[network] = self._built(network, POOLS[network])
        with _full_precision():
            return self._pools[network](FEATURES[kind].scale(images.to(self.device))).cpu()

    def lpips_maps(self, images: Tensor) -> list[Tensor]:
        """Normalised feature maps of (N, 3, H, W) uint8 images."""
        with _full_precision():
            return self.trunk(images.to(self.device).float().div_(127.5).sub_(1))


def _full_precision() -> contextlib.AbstractContextManager[None]:
    """No TF32 in cuDNN's convolutions, which is on by default and rounds to 10 bits."""
    deterministic = torch.backends.cudnn.deterministic
    return torch.backends.cudnn.flags(enabled=True, deterministic=deterministic, allow_tf32=False)


_TYPES: dict[bytes, type] = {b"f": np.float32, b"d": np.float64}
_SCHEMA = "CREATE TABLE {}entries (key TEXT PRIMARY KEY, data BLOB, sum INTEGER)"


class FeatureCache:
    """Key -> one-dimensional float32 or float64 array, on disk. path None: for this process only.

    A key names the content of the pictures, the resize, the network and its weights, so an entry never goes stale. One
    SQLite file: a process that is killed leaves it whole, several processes may share it, and every entry carries a
    checksum; a damaged one is computed again, and so is one of another length than asked for, which is not even read
    into memory. A file that cannot be opened or written, or that holds anything else, costs one warning, and the report
    goes on without it. What only this process needs is in a file without a name that SQLite makes and removes, so that
    memory stays flat. writes: False leaves the writing to another process.
    """

    def __init__(self, path: Path | None, writes: bool = True) -> None:
        self._path, self._writes = path, writes
        self._databases = [_open("")]  # the named one, if there is one, comes first
        if path is not None and (writes or path.exists()):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._databases.insert(0, _open_or_replace(path))
            except (OSError, sqlite3.Error) as error:
                self._warn(error)

    def stream(self, wanted: Iterable[tuple[str, int]]) -> Iterator[tuple[str, NDArray]]:
        """The sound entries among these (key, length), one at a time, in their order."""
        for key, length in wanted:
            if (value := self._read(key, length)) is not None:
                yield key, value

    def missing(self, wanted: Iterable[tuple[str, int]]) -> list[str]:
        """The keys without a sound entry, each once, in order."""
        lengths = dict(iter(wanted))
        found = {key for key, _ in self.stream(lengths.items())}
        return [key for key in lengths if key not in found]

    def put(self, entries: Mapping[str, NDArray]) -> None:
        """Add entries; they are on disk, all of them, when this returns."""
        rows = [(key, *_packed(value)) for key, value in entries.items()]
        for database in self._databases if self._writes else self._databases[-1:]:
            try:
                with database:
                    database.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", rows)
                return
            except sqlite3.Error as error:
                self._warn(error)

    def _read(self, key: str, length: int) -> NDArray | None:
        query = (
            "SELECT data, sum FROM entries WHERE key = ? AND length(data) IN (?, ?)"
            " AND typeof(data) = 'blob' AND typeof(sum) = 'integer'"
        )
        for database in self._databases:
            try:
                row = database.execute(query, (key, 1 + 4 * length, 1 + 8 * length)).fetchone()
            except sqlite3.Error as error:
                self._warn(error)
                continue
            if row is not None and zlib.crc32(row[0]) == row[1] and row[0][:1] in _TYPES:
                value: NDArray = np.frombuffer(row[0][1:], _TYPES[row[0][:1]])
                if len(value) == length and (length == 1 or np.isfinite(value).all()):  # PSNR may be infinite
                    return value
        return None

    def _warn(self, error: Exception) -> None:
        if self._path is not None:
            warn(self._path, f"{error}; features are computed again by the next report")
            self._path = None


def _packed(value: NDArray) -> tuple[bytes, int]:
    kind = b"f" if value.dtype == np.float32 else b"d"
    data = kind + np.ascontiguousarray(value, _TYPES[kind]).tobytes()
    return data, zlib.crc32(data)


def _open_or_replace(path: Path) -> sqlite3.Connection:
    """The database; a corrupt file is replaced by an empty one. OSError for a pipe or a folder."""
    if path.exists() and not path.is_file():
        raise OSError("is not a regular file")
    try:
        return _open(path)
    except sqlite3.OperationalError:
        # locked, read-only, no space, of another program: the file itself may be fine
        raise
    except sqlite3.DatabaseError:
        path.unlink()
        return _open(path)


def _open(path: Path | Literal[""]) -> sqlite3.Connection:
    """The database. It may hold our table and nothing else: a view or a trigger could compute for ever."""
    database = sqlite3.connect(path, timeout=60)
    try:
        database.execute("PRAGMA synchronous=NORMAL")
        database.execute(_SCHEMA.format("IF NOT EXISTS "))
        database.commit()
        found = database.execute("SELECT type, sql FROM sqlite_master").fetchmany(3)
        if sorted(found) != [("index", None), ("table", _SCHEMA.format(""))]:
            raise sqlite3.OperationalError("is not a cache of this program")
    except sqlite3.Error:
        with contextlib.suppress(sqlite3.Error):
            database.close()
        raise
    return database
