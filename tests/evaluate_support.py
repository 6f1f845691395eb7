"""What the tests of the evaluation share: pictures, tiny runs, random networks, an Inception that is fast."""

import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from evaluate import lpips
from evaluate.command import output_folder, run_evaluation
from evaluate.comparisons import Comparison
from evaluate.features import FeatureCache, Networks, build_inception
from evaluate.measure import Measurements
from evaluate.metrics import measure
from evaluate.options import EvaluateOptions
from evaluate.weights import SOURCES, Weights, WeightsChoice, load_weights
from gan.command_line import resolve
from gan.options import TrainOptions, from_dict
from gan.pretrained import find_pretrained
from train import train


def write_pictures(folder: Path, count: int, seed: int, size: tuple[int, int] = (40, 32)) -> Path:
    """Smooth random pictures, of (width, height)."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    for i in range(count):
        coarse = Image.fromarray(draw.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(folder / f"{i:03}.png")
    return folder


def aligned_data(root: Path, train_count: int = 4, test_count: int = 3) -> Path:
    """Side-by-side files of 2 x 32 pixels; B is A with its colours turned around."""
    for split, count, seed in (("train", train_count, 1), ("test", test_count, 2)):
        for path in write_pictures(root / split, count, seed, (32, 32)).iterdir():
            a = np.asarray(Image.open(path))
            Image.fromarray(np.concatenate([a, 255 - a[:, :, ::-1]], axis=1)).save(path)
    return root


def make_run(folder: Path, data: Path, name: str, model: str, **more: object) -> Path:
    """A run trained for one epoch with tiny networks."""
    flags = {
        "name": name, "checkpoints_dir": str(folder), "dataroot": str(data), "model": model, "netG": "resnet_6blocks",
        "ngf": 2, "ndf": 2, "norm": "instance", "load_size": 32, "crop_size": 32, "n_epochs": 1, "n_epochs_decay": 0,
        "num_threads": 0, "visdom": "off", "device": "cpu", "val_count": 2, **more,
    }  # fmt: skip
    trained: TrainOptions = resolve(from_dict(flags))
    assert train(trained, None) == 0
    return folder / name


def asked(**flags: Any) -> EvaluateOptions:
    """Options of a call that downloads nothing; `runs` may be one folder."""
    runs = flags.pop("runs", ())
    names = (runs,) if isinstance(runs, str | Path) else runs
    return EvaluateOptions(runs=tuple(map(str, names)), offline=True, **flags)


def place(**flags: Any) -> Path:
    """The folder of the report of a call."""
    options = asked(**flags)
    return output_folder(options, [find_pretrained(name, options.checkpoints_dir) for name in options.runs])


def evaluate(**flags: Any) -> dict[str, Any]:
    """`python -m evaluate` with these flags, in this process; the content of its report.json."""
    assert run_evaluation(asked(**flags)) == 0
    return dict(json.loads((place(**flags) / "report.json").read_text()))


@cache
def random_trunk() -> dict[str, Tensor]:
    """AlexNet's five convolutions with random weights."""
    draws = torch.Generator().manual_seed(0)
    shapes = ((64, 3, 11), (192, 64, 5), (384, 192, 3), (256, 384, 3), (256, 256, 3))
    state = {}
    for place, (outputs, inputs, side) in zip(lpips.CONVOLUTIONS, shapes, strict=True):
        scale = (2 / (inputs * side * side)) ** 0.5
        state[f"features.{place}.weight"] = torch.randn(outputs, inputs, side, side, generator=draws) * scale
        state[f"features.{place}.bias"] = torch.randn(outputs, generator=draws) * 0.1
    return state


def random_inception_state(seed: int = 0) -> dict[str, Tensor]:
    """Weights that keep the scale of what passes through, and batch statistics that are not trivial."""
    draws = torch.Generator().manual_seed(seed)
    net = build_inception()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            module.weight.data = torch.randn(module.weight.shape, generator=draws) * (2 / fan_in) ** 0.5
        elif isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.running_mean.shape, generator=draws) * 0.1
            module.running_var = torch.rand(module.running_var.shape, generator=draws) + 0.5
    return dict(net.state_dict())


def lpips_heads() -> Weights:
    """The published ones, which the lpips package brings."""
    return load_weights(SOURCES["heads"], WeightsChoice(Path()))


class FewFeatures(Networks):
    """An Inception that is one linear layer (fast), an AlexNet with random weights; counts its pictures."""

    def __init__(self) -> None:
        weights = {
            "inception": Weights({}, "1" * 64, Path("inception"), True),
            "alexnet": Weights(random_trunk(), "2" * 64, Path("alexnet"), True),
            "heads": lpips_heads(),
            "efficientnet_lite0": Weights({}, "3" * 64, Path("efficientnet_lite0"), True),
        }
        super().__init__(weights)
        self.seen = Counter[str]()
        self.matrix = torch.randn(3 * 4 * 4, 8, generator=torch.Generator().manual_seed(0))

    def width(self, kind: str) -> int:
        return 8

    def features(self, kind: str, images: Tensor) -> Tensor:
        self.seen[kind] += len(images)
        small = nn.functional.adaptive_avg_pool2d(images.float() / 255, 4)
        return small.flatten(1) @ self.matrix

    def lpips_maps(self, images: Tensor) -> list[Tensor]:
        self.seen["lpips"] += len(images)
        return super().lpips_maps(images)


class FastMeasurements(Measurements):
    """By `FewFeatures`; `values` and `widths` are of one comparison."""

    networks: FewFeatures

    def __init__(
        self, cache: Path | None = None, batch_size: int = 3, networks: Networks | None = None
    ) -> None:
        super().__init__(FeatureCache(cache), networks or FewFeatures(), batch_size=batch_size)

    def values(self, row: Comparison, flags: tuple[str, ...]) -> dict[str, float]:
        return dict(measure([row], flags, self)[0].values)

    def widths(self, row: Comparison, flags: tuple[str, ...], resamples: int) -> dict[str, float]:
        return dict(measure([row], flags, self, resamples)[0].widths)
