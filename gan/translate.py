"""A checkpoint becomes a function from pictures to pictures; every option comes from the checkpoint."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from datasets.bands import Box, Picture
from datasets.decoding import PIXEL_LIMIT, pixel_limit
from datasets.errors import RunError, UserError, is_out_of_memory, no_bar
from datasets.files import ahead, behind
from datasets.geotiff import GeoTiff
from datasets.images import (
    TIFF_EXTENSIONS,
    ValueRange,
    as_picture,
    converted,
    load_image,
    resized,
    save_pixels,
    to_pixels,
    to_tensor,
)
from datasets.transforms import Augmentation
from gan.options import TrainOptions, channels, from_dict, stored_dict
from gan.pretrained import find_pretrained, read_pretrained
from gan.processes import ALONE, Processes
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
    def value_range(self) -> ValueRange | None:
        """The input values that become black and white; None for those of the number format."""
        wanted = self.options.data.value_ranges["AB".index(self.direction[0])]
        return None if wanted == "auto" else wanted

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
    def __call__(self, picture: np.ndarray) -> np.ndarray: ...
    @overload
    def __call__(self, picture: str | Path | Image.Image) -> Image.Image: ...

    def __call__(self, picture: Any) -> Any:
        """The translation of a picture, of the same size, and of the same kind as the picture.

        A tensor is (N, C, H, W) in [-1, 1], and so is its translation, float32 on the CPU. A size that the network
        cannot take is padded (by reflection where the picture is large enough, else by its edge) and cropped back.
        For a path or a Pillow picture there is a Pillow picture, for an array (H, W, C) uint8 an array: what test.py
        writes, with pictures converted to the channels of the network, at the scale of the training. A path is read
        with the run's --value_range; in Pillow pictures and arrays 0 is black and 255 white. More than 4 channels are
        always an array. Raises UserError for anything else, and for what cannot be read.
        """
        if isinstance(picture, Tensor):
            return self._translated(picture)
        if isinstance(picture, str | Path):
            image = load_image(Path(picture), self.input_nc, self.value_range)
        elif isinstance(picture, Image.Image) or _is_pixels(picture):
            image = converted(picture, self.input_nc)
        else:
            given = (
                f"{type(picture).__name__} {getattr(picture, 'dtype', '')} {getattr(picture, 'shape', '')}"
            )
            fix = "give a path, a Pillow picture, (H, W, C) uint8, or a tensor in [-1, 1]"
            raise UserError("picture", f"cannot be translated: {given.strip()}", fix)
        seen = _at_scale(image, self.scale, "picture")
        [parts] = _outputs(self, [seen], Tiling("auto").side(self.network, seen.size))
        pixels = joined(((box, to_pixels(output)) for box, output in parts), seen.size)
        pixels = resized(pixels, image.size)
        is_array = isinstance(picture, np.ndarray) or self.output_nc > MOST_IN_PNG
        return pixels if is_array else as_picture(pixels)

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
        on_this_machine = {"nc_backend": "auto", "grad_checkpoint": False}
        options = from_dict({"direction": direction or "AtoB"} | state["options"] | on_this_machine)
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


def _generator_name(options: TrainOptions, direction: str) -> str:
    if options.model.model == "pix2pix":
        if direction != options.data.direction:
            trained = options.data.direction
            raise UserError("--direction", f"this pix2pix run was trained {trained} only", f"use {trained}")
        return "G"
    return "G_A" if direction == "AtoB" else "G_B"


Load = Callable[[], Picture | GeoTiff]
Sized = TypeVar("Sized", bound=tuple[Any, ...])
"""A picture and what belongs to it."""


class Job(NamedTuple):
    """A picture as the network sees it, and what becomes of its translation."""

    image: Picture | GeoTiff
    path: Path
    size: tuple[int, int]  # (width, height) of the file that is written
    source: Picture | GeoTiff  # before a resize

    def write(self, parts: Iterable[tuple[Box, np.ndarray]], count: int, depth: int) -> None:
        """Write the translation, (H, W, count) pixels for each box of it."""
        if not isinstance(self.source, GeoTiff) or self.path.suffix.lower() not in TIFF_EXTENSIONS:
            pixels = joined(parts, self.image.size)
            for picture in (self.image, self.source):
                picture.close()  # its memory is free for the encoder
            save_pixels(resized(pixels, self.size), self.path)
            return
        with self.source.writing(self.path, self.size, count, depth) as write:
            if self.image.size != self.size:
                pixels = resized(joined(parts, self.image.size), self.size)
                parts = [((0, 0, *self.size), pixels)]
            for box, pixels in parts:
                write(box, pixels)
        self.source.close()


def translate_pictures(
    translator: Translator,
    pictures: Sequence[tuple[Load, Path]],
    batch_size: int = 1,
    size: int | None = None,
    scale: tuple[float, float] = (1.0, 1.0),
    tiling: Tiling = IN_ONE_PIECE,
    depth: int = 8,
    processes: Processes = ALONE,
) -> None:
    """Translate each picture and write it as PNG or TIFF; `size` forces size x size, else each keeps its own.

    pictures: (function that decodes one, file to write). scale: factors across and down by which a picture is resized
    for the network; its translation is resized back. tiling: when what the network sees is cut into tiles. depth: bits
    of a channel that are written, 8 or 16.
    processes: share the pictures of the first one by whole batches, the same as those of one process.
    Shows a progress bar. Raises UserError naming a file that cannot be read or written; what is written before stays,
    and no file is ever half written.
    """

    def decode(picture: tuple[Load, Path]) -> Job:
        source = image = picture[0]()
        if size:
            image = image.resize((size, size), Image.Resampling.BICUBIC)
        return Job(_at_scale(image, scale, picture[1]), picture[1], image.size, source)

    pictures = processes.from_first(partial(list, pictures))
    rank, world = processes.rank, processes.world
    if batch_size == 1 or size:  # the batches are known: this process reads no others' pictures
        pictures = [one for i, one in enumerate(pictures) if i // batch_size % world == rank]
        rank, world = 0, 1
    many = pixel_limit() <= PIXEL_LIMIT  # of larger pictures memory holds one
    with (
        tqdm(
            total=len(pictures), unit="image", desc="translate", dynamic_ncols=True, disable=no_bar()
        ) as bar,
        behind(8 if many else 0) as later,
    ):
        batches = same_size_batches(ahead(decode, pictures, 8 if many else 1), batch_size)
        for batch in islice(batches, rank, None, world):
            side = tiling.side(translator.network, batch[0].image.size)
            with _advising_on_memory(batch[0], side):
                outputs = _outputs(translator, [job.image for job in batch], side)
                for job, parts in zip(batch, outputs, strict=True):
                    pixels = ((box, to_pixels(output, depth)) for box, output in parts)
                    # tiles are computed while they are written; a GeoTIFF is read and written by one thread
                    if side or isinstance(job.source, GeoTiff):
                        job.write(pixels, translator.output_nc, depth)
                    else:
                        later(partial(_write, job, list(pixels), translator.output_nc, depth))
            bar.update(len(batch))
    processes.gather(list)  # all have written theirs


def _write(job: Job, parts: list[tuple[Box, np.ndarray]], count: int, depth: int) -> None:
    with _advising_on_memory(job, side=0):
        job.write(parts, count, depth)


@contextmanager
def _advising_on_memory(job: Job, side: int) -> Iterator[None]:
    """RunError that names the job's file where memory is too small. side: of the tiles, 0 for none."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        smaller = "give a smaller --tile" if side else "force a smaller --size, or lower --batch_size"
        reason = "out of memory at {}x{} pixels".format(*job.image.size)
        raise RunError(job.path, reason, smaller) from error


Seen = TypeVar("Seen", Picture, Picture | GeoTiff)


def _at_scale(image: Seen, scale: tuple[float, float], name: str | Path) -> Seen:
    """Resized by factors across and down; name: what the error line speaks of where memory is too small."""
    if scale == (1, 1):
        return image
    width, height = (max(2, round(length * factor)) for length, factor in zip(image.size, scale, strict=True))
    try:
        return image.resize((width, height), Image.Resampling.BICUBIC)
    except MemoryError as error:
        reason = f"out of memory at {width}x{height} pixels"
        raise RunError(name, reason, "give a smaller --scale, or native") from error


def _outputs(
    translator: Translator, images: Sequence[Picture | GeoTiff], side: int
) -> Iterable[Iterable[tuple[Box, Tensor]]]:
    """For each of some pictures of one size, the parts of its translation: (C, h, w) in [-1, 1] for a box of it."""
    if side:
        return (translate_tiles(translator, translator.network, image, side) for image in images)
    whole = [image.whole() if isinstance(image, GeoTiff) else image for image in images]
    together = translator(torch.stack([to_tensor(image) for image in whole]))
    return ([((0, 0, *images[0].size), output)] for output in together)


def _is_pixels(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3


MOST_IN_PNG = 4
"""Channels of a PNG; TIFF holds any number."""


def suffix_for(count: int) -> str:
    """The extension of a file that holds a translation of `count` channels."""
    return ".png" if count <= MOST_IN_PNG else ".tif"


def same_size_batches(pictures: Iterable[Sized], batch_size: int) -> Iterator[list[Sized]]:
    """Neighbours of one size together, at most `batch_size` of them. A picture comes with what belongs to it."""
    for _, neighbours in groupby(pictures, key=lambda entry: entry[0].size):
        while batch := list(islice(neighbours, batch_size)):
            yield batch


def output_names(
    inputs: Sequence[Path], root: Path | None = None, suffix: Callable[[Path], str] = lambda path: ".png"
) -> list[str]:
    """STEM.png for each input; where two share a stem, their whole names keep them apart (a.jpg.png).

    root: the names keep the folders between it and the input. suffix: of an input's output.
    """
    places = [path.relative_to(root) if root else Path(path.name) for path in inputs]
    suffixes = list(map(suffix, inputs))
    names = [str(place.with_name(f"{place.stem}{end}")) for place, end in zip(places, suffixes, strict=True)]
    while True:  # a second round where a file is called a.jpg.png already
        uses = Counter(name.casefold() for name in names)
        longer = [
            f"{place}{end}" if uses[name.casefold()] > 1 else name
            for place, name, end in zip(places, names, suffixes, strict=True)
        ]
        if longer == names:
            return names
        names = longer
