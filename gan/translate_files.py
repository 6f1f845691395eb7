"""Files in, files out: batches of equal size, decoded ahead, memory that does not grow with their number."""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image
from tqdm import tqdm

from datasets.errors import RunError, UserError, is_out_of_memory
from datasets.images import inspect_image, save_png, to_picture, to_tensor
from gan.translate import Translator

Load = Callable[[], Image.Image]
Item = TypeVar("Item")
Result = TypeVar("Result")


def translate_pictures(
    translator: Translator,
    pictures: Sequence[tuple[Load, Path]],
    batch_size: int = 1,
    size: int | None = None,
) -> None:
    """Translate each picture and write it as PNG; `size` forces size x size, else each keeps its own.

    pictures: (function that decodes one, file to write). Shows a progress bar. Raises UserError naming a file that
    cannot be read or written; what is written before stays, and no file is ever half written.
    """

    def decode(picture: tuple[Load, Path]) -> tuple[Image.Image, Path]:
        image = picture[0]()
        return (image.resize((size, size), Image.Resampling.BICUBIC) if size else image), picture[1]

    with tqdm(total=len(pictures), unit="image", desc="translate", dynamic_ncols=True, disable=None) as bar:
        for batch in same_size_batches(ahead(decode, pictures), batch_size):
            try:
                outputs = translator(torch.stack([to_tensor(image) for image, _ in batch]))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                width, height = batch[0][0].size
                fix = "force a smaller --size, or lower --batch_size"
                raise RunError(batch[0][1], f"out of memory at {width}x{height} pixels", fix) from error
            for output, (_, path) in zip(outputs, batch, strict=True):
                save_png(to_picture(output), path)
            bar.update(len(batch))


def ahead(function: Callable[[Item], Result], items: Iterable[Item], depth: int = 8) -> Iterator[Result]:
    """`function` of each item, in order, up to `depth` of them worked out in threads before they are asked for."""
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def same_size_batches(
    pictures: Iterable[tuple[Image.Image, Path]], batch_size: int
) -> Iterator[list[tuple[Image.Image, Path]]]:
    """Neighbours of one size together, at most `batch_size` of them."""
    batch: list[tuple[Image.Image, Path]] = []
    for picture in pictures:
        if batch and (len(batch) == batch_size or picture[0].size != batch[0][0].size):
            yield batch
            batch = []
        batch.append(picture)
    if batch:
        yield batch


def output_names(inputs: Sequence[Path]) -> list[str]:
    """STEM.png for each input; where two share a stem, their whole names keep them apart (a.jpg.png)."""
    names = [f"{path.stem}.png" for path in inputs]
    while True:  # a second round where a file is called a.jpg.png already
        uses = Counter(name.casefold() for name in names)
        longer = [
            f"{path.name}.png" if uses[name.casefold()] > 1 else name
            for path, name in zip(inputs, names, strict=True)
        ]
        if longer == names:
            return names
        names = longer


def check_readable(inputs: Sequence[Path], skip_bad: bool) -> list[Path]:
    """The inputs that can be decoded. UserError with all that cannot, unless they are to be skipped."""

    def verdict(path: Path) -> str:
        try:
            width, height = inspect_image(path).size
            return "" if min(width, height) >= 2 else f"{path}: image is {width}x{height}, needs at least 2x2"
        except UserError as error:
            return str(error)

    verdicts = list(ahead(verdict, inputs, depth=32))
    bad = [text for text in verdicts if text]
    if bad and (not skip_bad or len(bad) == len(inputs)):
        raise UserError(
            "--input",
            f"{len(bad)} of {len(inputs)} files cannot be translated",
            "mend or remove them, or add --skip_bad",
            bad,
        )
    return [path for path, text in zip(inputs, verdicts, strict=True) if not text]
