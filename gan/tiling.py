"""Pictures that do not fit a network: padded to the next size that it takes, or cut into tiles with a halo."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from datasets.bands import Box, Picture
from datasets.decoding import PIXEL_LIMIT
from datasets.errors import UserError, warn
from datasets.geotiff import GeoTiff
from datasets.images import to_tensor
from models.receptive_field import halo, whole_picture_layer
from models.unet import UnetGenerator

ORDINARY = 2**22  # pixels of a picture that is always translated in one piece, unless --tile gives a number
HALOS = 12  # in an automatic tile's side: tiles then compute 1.36 times as much as one piece, (12 + 2)² / 12²


@dataclass(frozen=True)
class Tiling:
    """When a picture is cut into tiles. tile: `auto`, or the largest side of a tile, 0 for none.

    inexact: also where a norm of the whole picture becomes one of the tile.
    """

    tile: str = "0"
    inexact: bool = False

    def side(self, network: nn.Module, size: tuple[int, int]) -> int:
        """Largest side of the tiles of a picture of this (width, height); 0: translate it in one piece.

        Raises UserError where tiles are needed, and the network cannot take them.
        """
        is_auto, pixels = self.tile == "auto", size[0] * size[1]
        side = HALOS * halo(network) if is_auto else int(self.tile)
        if not side or (pixels <= ORDINARY if is_auto else max(size) <= side):
            return 0
        if reason := self._obstacle(network):
            if is_auto and pixels <= PIXEL_LIMIT:
                return 0
            inexact = "" if isinstance(network, UnetGenerator) or network.training else ", or --tile_inexact"
            fix = f"--tile 0 takes it in one piece, if memory allows{inexact}"
            raise UserError("--tile", f"{size[0]}x{size[1]} pixels cannot be cut: {reason}", fix)
        return side

    def _obstacle(self, network: nn.Module) -> str:
        """Why tiles would change the picture; "" where they would not."""
        if isinstance(network, UnetGenerator):
            return f"a U-Net looks {halo(network)} pixels far, through its bottleneck"
        layer = whole_picture_layer(network)
        if layer is None:
            return ""
        if self.inexact and isinstance(layer, nn.InstanceNorm2d):
            _warn_of_inexact_tiles()
            return ""
        if layer.training:
            return f"{type(layer).__name__} depends on the whole picture in --test_mode train"
        return f"{type(layer).__name__} depends on the whole picture"


IN_ONE_PIECE = Tiling()


@cache
def _warn_of_inexact_tiles() -> None:
    warn("--tile_inexact", "instance norm standardises each tile on its own: translations in tiles differ")


def translate_tiles(
    translate: Callable[[Tensor], Tensor], network: nn.Module, picture: Picture | GeoTiff, side: int
) -> Iterator[tuple[Box, Tensor]]:
    """The translation of a picture, tile after tile, row after row: the tile's place, and (C, h, w) in [-1, 1].

    translate: what `network` makes of (1, C, H, W). side: of the tiles at most, rounded up to what the strides ask for.
    The picture is padded to a size that the network takes, as in one piece, and halos end where it ends. So only its
    own border is reflected. Shows a progress bar.
    """
    width, height = picture.size
    right, down, mode = padding_to_fit(width, height, network)
    rows, columns = (_spans(*axis, side, network) for axis in ((height, down), (width, right)))
    tiles = list(product(rows, columns))
    for row, column in tqdm(tiles, "tiles", unit="tile", leave=False, dynamic_ncols=True, disable=None):
        seen = to_tensor(picture.crop((column.seen, row.seen, column.seen_end, row.seen_end)))
        output = translate(F.pad(seen[None], (0, column.padding, 0, row.padding), mode))[0]
        output = output[:, row.first - row.seen : row.end - row.seen]
        output = output[:, :, column.first - column.seen : column.end - column.seen]
        yield (column.first, row.first, column.end, row.end), output


def joined(parts: Iterable[tuple[Box, np.ndarray]], size: tuple[int, int]) -> np.ndarray:
    """The (H, W, C) pixels of a picture of this (width, height) from those of its tiles."""
    pixels = np.empty(0)
    for (left, top, right, bottom), part in parts:
        if part.shape[1::-1] == size:
            return part
        if not pixels.size:
            pixels = np.empty((size[1], size[0], part.shape[2]), part.dtype)
        pixels[top:bottom, left:right] = part
    return pixels


class _Span(NamedTuple):
    """One side of a tile, from `first` to `end`, and of what it depends on, which is padded after `seen_end`."""

    first: int
    end: int
    seen: int
    seen_end: int
    padding: int


def _spans(length: int, padding: int, side: int, network: nn.Module) -> list[_Span]:
    """Equal parts of a length, the last one shorter, that begin on multiples of what the strides ask for."""
    around, multiple, whole = halo(network), int(getattr(network, "size_multiple", 1)), length + padding
    count = -(-whole // (-(-side // multiple) * multiple))
    step = -(-whole // (count * multiple)) * multiple
    spans = []
    for first in range(0, length, step):
        seen_end = min(first + step + around, whole)
        spans.append(
            _Span(
                first,
                min(first + step, length),
                max(first - around, 0),
                min(seen_end, length),
                max(seen_end - length, 0),
            )
        )
    return spans


def pad_to_fit(images: Tensor, network: nn.Module) -> Tensor:
    """Images grown at the right and bottom to the next size that `network` takes."""
    height, width = images.shape[2:]
    right, down, mode = padding_to_fit(width, height, network)
    return F.pad(images, (0, right, 0, down), mode) if right or down else images


def padding_to_fit(width: int, height: int, network: nn.Module) -> tuple[int, int, str]:
    """Pixels that a picture of this size lacks at its right and bottom, and the mode of `F.pad` that makes them."""
    multiple, least = getattr(network, "size_multiple", 1), getattr(network, "min_size", 1)

    def missing(length: int) -> int:
        return max(-(-length // multiple) * multiple, -(-least // multiple) * multiple) - length

    right, down = missing(width), missing(height)
    return right, down, "reflect" if down < height and right < width else "replicate"
