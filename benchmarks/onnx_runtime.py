"""ONNX Runtime against torch on this CPU: time per picture of an exported generator, by network, norm and size.

    python benchmarks/onnx_runtime.py [--sizes 256 512] [--ngf 64] [--rounds 5] [--threads N]

Both get the same uint8 picture and give float values: the graph of `python -m gan.export --format onnx`, and the
Translator with what test.py does around it. They take turns, so that other work on the machine meets both; a figure
is the median of the rounds, the ratio the median of the ratios of neighbours. Weights are random. Needs
requirements-export.txt.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from datasets.images import to_unit_range
from gan.command_line import parse_options
from gan.export_graph import export_graph, write_onnx
from gan.setup import generators
from gan.step import Placement
from gan.translate import Translator

NETWORKS = (
    ("resnet_9blocks", "instance"),
    ("resnet_9blocks", "nc_ms"),
    ("resnet_9blocks", "nc"),
    ("unet_256", "nc_ms"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--ngf", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(
        f"torch {torch.__version__}, {given.threads} threads, ngf {given.ngf}, median of {given.rounds} rounds\n"
    )
    print("| network | norm | size | torch s | ONNX Runtime s | ONNX Runtime / torch | largest difference |")
    print("|---|---|---|---|---|---|---|")
    for name, norm in NETWORKS:
        translator, translate = both(name, norm, given.ngf, given.threads)
        for size in given.sizes:
            print(
                f"| {name} | {norm} | {size} | {compare(translator, translate, size, given.rounds)} |",
                flush=True,
            )


Translate = Callable[[torch.Tensor], torch.Tensor]


def both(name: str, norm: str, ngf: int, threads: int) -> tuple[Translate, Translate]:
    """A network of random weights in torch, and its export in ONNX Runtime: pictures -> values in [-1, 1]."""
    import onnxruntime

    torch.manual_seed(0)
    options = parse_options(f"--dataroot none --netG {name} --norm {norm} --ngf {ngf}".split())
    network = generators(options)["G_A"].eval()
    translator = Translator(network, options, "AtoB", Path(), 0, 0, Placement(torch.device("cpu")), None)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_onnx(export_graph(network, translator.input_nc), path, {})
        session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])

    def by_onnx_runtime(pictures: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(["values"], {"image": pictures.numpy()})[0]) * 2 - 1

    return lambda pictures: translator(to_unit_range(pictures)), by_onnx_runtime


def compare(ours: Translate, theirs: Translate, size: int, rounds: int) -> str:
    """The cells of a row."""
    draws = torch.Generator().manual_seed(size)
    picture = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8, generator=draws)
    difference = (ours(picture) - theirs(picture)).abs().max().item()  # warms both up too
    times = [(seconds(ours, picture), seconds(theirs, picture)) for _ in range(rounds)]
    torch_s, onnx_s = (statistics.median(side) for side in zip(*times, strict=True))
    ratio = statistics.median(theirs_s / ours_s for ours_s, theirs_s in times)
    return f"{torch_s:.2f} | {onnx_s:.2f} | {ratio:.2f} | {difference:.0e}"


def seconds(translate: Translate, picture: torch.Tensor) -> float:
    begin = time.perf_counter()
    translate(picture)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
