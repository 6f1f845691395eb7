"""A checkpoint becomes a function from pictures to pictures; every option comes from the checkpoint."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from datasets.decoding import PIXEL_LIMIT, pixel_limit
from datasets.errors import RunError, UserError, is_out_of_memory
from datasets.files import ahead
from datasets.images import as_picture, save_png, to_pixels, to_tensor
from datasets.transforms import Augmentation
from gan.options import TrainOptions, channels, from_dict, stored_dict
from gan.pretrained import find_pretrained, read_pretrained
from gan.setup import generators
from gan.state import check_format, load_network, refuse_malformed, require_fit
from gan.step import Placement, find_device
from gan.tiling import IN_ONE_PIECE, Tiling, joined, pad_to_fit, translate_tiles

Direction = Literal["AtoB", "BtoA"]
TestMode = Literal["eval", "train"]
Weights = Literal["ema", "raw"]
"""Weights of a run trained with --ema: their average, or as they were trained. Other runs have only the latter."""

LARGEST_SIDE = 65535  # of a picture that is read


@dataclass(frozen=True)
class Translator:
    """One generator of a run, ready for pictures of any size from 2x2."""

    network: nn.Module
    options: TrainOptions
    direction: str
    checkpoint: Path
    step: int
    epoch: int  # epochs that were finished
    placement: Placement
    median_size: tuple[float, float] | None  # of the input domain's training pictures; None: not known
    is_average: bool = False  # of the weights of a training with --ema

    @property
    def trained_scale(self) -> tuple[float, float]:
        """By how much the training resized its pictures, across and down; (1, 1) where that is not known."""
        data = self.options.data
        if self.median_size is None:
            return 1.0, 1.0
        return Augmentation(data.preprocess, data.load_size, data.crop_size).scale(self.median_size)

    @property
    def position(self) -> str:
        """`epoch 3`, or `epoch 3, ema`: what of the training it is; where that is not known, the file's name."""
        if not self.step:
            return self.checkpoint.name
        return f"epoch {self.epoch}{', ema' * self.is_average}"

    @property
    def input_nc(self) -> int:
        return channels(self.options, self.direction)[0]

    @property
    def output_nc(self) -> int:
        return channels(self.options, self.direction)[1]

    @property
    def stored_options(self) -> dict[str, Any]:
        """The options of the training, as a checkpoint stores them."""
        return stored_dict(self.options)

    @property
    def scale(self) -> tuple[float, float]:
        """At which pictures are translated, across and down: `trained_scale`, or 1 where it differs by up to 1.25."""
        factors = self.trained_scale
        return (1.0, 1.0) if all(1 / 1.25 <= factor <= 1.25 for factor in factors) else factors

    @overload
    def __call__(self, picture: Tensor) -> Tensor: ...
    @overload
    def __call__(self, picture: Image.Image) -> Image.Image: ...

    def __call__(self, picture: Any) -> Any:
        """The translation of a picture, of the same size, and of the same kind as the picture.

        A tensor is (N, C, H, W) in [-1, 1], and so is its translation, float32 on the CPU. A size that the network
        cannot take is padded (by reflection where the picture is large enough, else by its edge) and cropped back.
        For a Pillow picture with the channels of the network there is what test.py writes.
        """
        if isinstance(picture, Tensor):
            return self._translated(picture)
        width, height = (
            max(2, round(n * factor)) for n, factor in zip(picture.size, self.scale, strict=True)
        )
        seen = picture if self.scale == (1, 1) else picture.resize((width, height), Image.Resampling.BICUBIC)
        if side := Tiling("auto").side(self.network, seen.size):
            pixels = joined(translate_tiles(self, self.network, seen, side), seen.size)
        else:
            pixels = to_pixels(self._translated(to_tensor(seen)[None])[0])
        made = as_picture(pixels)
        return made if made.size == picture.size else made.resize(picture.size, Image.Resampling.BICUBIC)

    def _translated(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        with torch.inference_mode(), self.placement.autocast():
            output = self.network(pad_to_fit(self.placement.put(images), self.network))
        return output[:, :, :height, :width].float().cpu()

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        epoch: str | int = "last",
        direction: str | None = None,
        device: str = "auto",
        test_mode: TestMode = "eval",
        weights: Weights = "ema",
    ) -> "Translator":
        """One generator of a run (a folder, or a name below `checkpoints`), or of a file that holds weights.

        epoch: of a run, last, best or a number; direction: default the trained one. test_mode "train" keeps dropout and
        batch statistics on (the published Pix2Pix protocol). weights: "raw" takes those that were trained even where
        there is an average of them. Raises UserError for an unknown run or epoch, damaged or hostile weights, and a
        direction that was not trained.
        """
        state, path = read_pretrained(find_pretrained(source), epoch)
        check_format(state, str(path))
        # this machine's, not the one it was trained on
        options = from_dict({"direction": direction or "AtoB"} | state["options"] | {"nc_backend": "auto"})
        direction = direction or options.data.direction
        is_average = weights == "ema" and "averages" in state
        name, networks = _generator_name(options, direction), state["averages" if is_average else "networks"]
        if name not in networks and not networks.keys().isdisjoint({"G_A", "G_B"}):
            there = options.data.direction
            raise UserError("--direction", f"{path.name} translates {there} only", f"use {there}")
        where = f"{path}: {name}"
        with refuse_malformed(str(path)):
            with torch.device("meta"):  # takes no memory, however large the options say that it is
                require_fit(generators(options)[name], networks.get(name, {}), where=where)
            network = generators(options)[name]
            position = state["position"]
            step, epochs = position["step"], position["epoch"] - 1
            size = state.get("median_sizes", {}).get(direction[0])
            median_size = (float(size[0]), float(size[1])) if size else None
            if median_size and not all(1 <= side <= LARGEST_SIDE for side in median_size):
                raise ValueError(f"pictures of size {median_size}")
        load_network(network, networks[name], where=where, check_finite=True)
        placement = Placement(find_device(device))
        placement.put_network(network).train(test_mode == "train")
        return cls(network, options, direction, path, step, epochs, placement, median_size, is_average)


load_translator = Translator.load


def _generator_name(options: TrainOptions, direction: str) -> str:
    if options.model.model == "pix2pix":
        if direction != options.data.direction:
            trained = options.data.direction
            raise UserError("--direction", f"this pix2pix run was trained {trained} only", f"use {trained}")
        return "G"
    return "G_A" if direction == "AtoB" else "G_B"


Load = Callable[[], Image.Image]
Sized = TypeVar("Sized", bound=tuple[Any, ...])
"""A picture and what belongs to it."""


def translate_pictures(
    translator: Translator,
    pictures: Sequence[tuple[Load, Path]],
    batch_size: int = 1,
    size: int | None = None,
    scale: tuple[float, float] = (1.0, 1.0),
    tiling: Tiling = IN_ONE_PIECE,
) -> None:
    """Translate each picture and write it as PNG; `size` forces size x size, else each keeps its own.

    pictures: (function that decodes one, file to write). scale: factors across and down by which a picture is resized
    for the network; its translation is resized back. tiling: when what the network sees is cut into tiles.
    Shows a progress bar. Raises UserError naming a file that cannot be read or written; what is written before stays,
    and no file is ever half written.
    """

    def decode(picture: tuple[Load, Path]) -> tuple[Image.Image, Path, tuple[int, int]]:
        image = picture[0]()
        if size:
            image = image.resize((size, size), Image.Resampling.BICUBIC)
        own = image.size
        if scale != (1, 1):
            seen = [max(2, round(length * factor)) for length, factor in zip(own, scale, strict=True)]
            try:
                image = image.resize((seen[0], seen[1]), Image.Resampling.BICUBIC)
            except MemoryError as error:
                reason = f"out of memory at {seen[0]}x{seen[1]} pixels"
                raise RunError(picture[1], reason, "give a smaller --scale, or native") from error
        return image, picture[1], own

    depth = 8 if pixel_limit() <= PIXEL_LIMIT else 1  # of larger pictures memory holds one
    with tqdm(total=len(pictures), unit="image", desc="translate", dynamic_ncols=True, disable=None) as bar:
        for batch in same_size_batches(ahead(decode, pictures, depth), batch_size):
            width, height = batch[0][0].size
            side = tiling.side(translator.network, (width, height))
            translate = partial(_in_tiles, side=side) if side else _in_one_piece
            try:
                pixels = translate(translator, [image for image, _, _ in batch])
                for (image, path, own), picture in zip(batch, map(as_picture, pixels), strict=True):
                    whole = picture if image.size == own else picture.resize(own, Image.Resampling.BICUBIC)
                    save_png(whole, path)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                smaller = "give a smaller --tile" if side else "force a smaller --size, or lower --batch_size"
                raise RunError(batch[0][1], f"out of memory at {width}x{height} pixels", smaller) from error
            bar.update(len(batch))


def _in_one_piece(translator: Translator, images: Sequence[Image.Image]) -> Iterator[np.ndarray]:
    """The translations of pictures of one size, (H, W, C) uint8 each."""
    yield from map(to_pixels, translator(torch.stack([to_tensor(image) for image in images])))


def _in_tiles(translator: Translator, images: Sequence[Image.Image], side: int) -> Iterator[np.ndarray]:
    """As _in_one_piece, in tiles. Closes each picture, so that its memory is free for the encoder."""
    for image in images:
        yield joined(translate_tiles(translator, translator.network, image, side), image.size)
        image.close()


def same_size_batches(pictures: Iterable[Sized], batch_size: int) -> Iterator[list[Sized]]:
    """Neighbours of one size together, at most `batch_size` of them. A picture comes with what belongs to it."""
    for _, neighbours in groupby(pictures, key=lambda entry: entry[0].size):
        while batch := list(islice(neighbours, batch_size)):
            yield batch


def output_names(inputs: Sequence[Path], root: Path | None = None) -> list[str]:
    """STEM.png for each input; where two share a stem, their whole names keep them apart (a.jpg.png).

    root: the names keep the folders between it and the input.
    """
    places = [path.relative_to(root) if root else Path(path.name) for path in inputs]
    names = [str(place.with_name(f"{place.stem}.png")) for place in places]
    while True:  # a second round where a file is called a.jpg.png already
        uses = Counter(name.casefold() for name in names)
        longer = [
            f"{place}.png" if uses[name.casefold()] > 1 else name
            for place, name in zip(places, names, strict=True)
        ]
        if longer == names:
            return names
        names = longer
