"""What tiles cost: time per pixel against one piece, and the memory that a large picture takes.

    python -m benchmarks.tiling [--ngf 16] [--netG resnet_9blocks] [--norm nc_ms] [--rounds 3]
    python -m benchmarks.tiling --memory 12000 [--geotiff]

The first form translates a picture of 3 x 3 automatic tiles, in one piece and in tiles by turns, and prints the ratio
of the medians of CPU time, which other work on the machine disturbs less. Tiles at the border have less halo. So it
also times a tile with all of its halo, which is what most tiles of a very large picture are. The goal is a ratio of at
most 1.4.

The second form runs test.py's own function on a picture of N x N pixels (drawn, with noise, so that it hardly
compresses) in a process of its own (on Linux), and prints the most memory that this took beyond that of the imports.
The goals at 12,000 pixels and --ngf 16 are 2.5 GB as PNG and 2 GB as GeoTIFF.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gan.checkpoint import save_checkpoint
from gan.command_line import parse_train
from gan.options import stored_dict
from gan.run import RunFolder
from gan.setup import build_trainer
from gan.state import Position, capture
from gan.tiling import Tiling, translate_tiles
from gan.translate import Translator
from models.receptive_field import halo

ROOT = Path(__file__).resolve().parents[1]

MEASURED = """
import re, sys, time
from datasets.errors import prepare_for_torch
prepare_for_torch()  # as every command does
import imagecodecs, tifffile
from gan.translate_command import run_test
from gan.translation_options import TranslationOptions
if sys.argv[3] == "geotiff":
    import rasterio
def peak():  # ru_maxrss would hold the parent's peak too
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
before, begin = peak(), time.perf_counter()
run_test(TranslationOptions(
    name="r", checkpoints_dir=sys.argv[1], input=(sys.argv[2],), output=sys.argv[2] + ".out", device="cpu",
    max_pixels=10**10, scale="native",
))
print(before, peak(), time.perf_counter() - begin)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ngf", type=int, default=16)
    parser.add_argument("--netG", default="resnet_9blocks")
    parser.add_argument("--norm", default="nc_ms")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, help="side of the picture in pixels")
    parser.add_argument("--geotiff", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = untrained_run(Path(folder), given.netG, given.norm, given.ngf)
        if given.memory:
            memory(Path(folder), given.memory, given.geotiff)
        else:
            overhead(Translator.load(run, device="cpu"), given.rounds)


def untrained_run(folder: Path, netG: str, norm: str, ngf: int) -> Path:
    """A run `r` with random weights and no base norm."""
    flags = f"--dataroot none --name r --checkpoints_dir {folder} --dry_run --netG {netG} --norm {norm}"
    flags += f" --base_norm none --ngf {ngf} --ndf 4 --init_type kaiming --device cpu"
    options, _ = parse_train(flags.split())
    run, stored = RunFolder(folder / "r"), stored_dict(options)
    run.path.mkdir()
    state = capture(build_trainer(options), Position(2, 0, 1), stored, 0, ["none 0 0"], {})
    save_checkpoint(run.path, state, step=1, epoch=1, keep=1)
    return run.path


def drawn(side: int) -> np.ndarray:
    """(side, side, 3) uint8: smooth colours with noise."""
    draws = np.random.default_rng(0)
    coarse = Image.fromarray(draws.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((1000, 1000), Image.Resampling.BICUBIC), np.int16)
    block = (smooth + draws.integers(-8, 9, smooth.shape)).clip(0, 255).astype(np.uint8)
    times = -(-side // 1000)
    return np.tile(block, (times, times, 1))[:side, :side]


def overhead(translator: Translator, rounds: int) -> None:
    """Print seconds per megapixel in one piece, in 3 x 3 tiles, and in a tile with its whole halo; and the ratios."""
    network = translator.network
    tile, around = Tiling("auto").side(network, (10**5, 10**5)), halo(network)
    side = 3 * tile
    picture = Image.fromarray(drawn(side))
    whole = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 127.5 - 1
    one_tile = whole[:, :, : tile + 2 * around, : tile + 2 * around].contiguous()

    def timed(call: Callable[[], object], pixels: int) -> float:
        begin = time.process_time()
        call()
        return (time.process_time() - begin) / pixels * 1e6

    times: dict[str, list[float]] = {"one piece": [], "tiles": [], "tile and halo": []}
    for _ in range(rounds):
        times["one piece"].append(timed(lambda: translator(whole), side**2))
        times["tiles"].append(
            timed(lambda: list(translate_tiles(translator, network, picture, tile)), side**2)
        )
        times["tile and halo"].append(timed(lambda: translator(one_tile), tile**2))
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"tile {tile}, halo {around}, picture {side} x {side}, {torch.get_num_threads()} threads")
    for name, seconds in medians.items():
        print(f"{name:>14}  {seconds:6.3f} CPU s a megapixel  {seconds / medians['one piece']:5.2f}")


def memory(folder: Path, side: int, geotiff: bool) -> None:
    """Print the peak of a process that translates a picture of side x side pixels, beyond what it began with."""
    source, kind = folder / ("x.tif" if geotiff else "x.png"), "geotiff" if geotiff else "png"
    if geotiff:
        import rasterio
        from rasterio.transform import from_origin

        place = {"crs": "EPSG:32632", "transform": from_origin(5e5, 5e6, 0.2, 0.2)}
        sizes = {"width": side, "height": side, "count": 3, "dtype": "uint8", "tiled": True}
        with rasterio.open(source, "w", driver="GTiff", **sizes, **place) as file:
            file.write(drawn(side).transpose(2, 0, 1))
    else:
        Image.fromarray(drawn(side)).save(source, compress_level=1)
    words = [sys.executable, "-c", MEASURED, str(folder), str(source), kind]
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    before, peak, seconds = map(float, done.stdout.split()[-3:])
    print(
        f"{side} x {side} pixels as {kind}: {(peak - before) / 1e9:.2f} GB beyond the imports, {seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
