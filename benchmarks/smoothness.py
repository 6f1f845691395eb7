"""Section 5 of the paper, measured: is the loss smoother with NC, and does NC do badly with Adam?

    python -m benchmarks.smoothness DATAROOT [--steps 60] [--seeds 0,1]

A small network of four convolutions is trained on pictures of classes, in forms that differ in the convolutions and
norms alone. Every few steps, on one fixed batch:

    sharpness        largest eigenvalue, by magnitude, of the Hessian of the loss; power iteration
    gradient change  |g(w) - g(w - a g)| / |g|, largest over steps a up to 0.1, and the cosine there: gradient
                     predictiveness as in "How does batch normalization help optimization" (Santurkar et al. 2018)

Writes `benchmarks/results/smoothness.md`, up to its heading "What it shows".
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.result_pages import write_page
from benchmarks.steps import machine
from cuda_ops import NormalizedConv2d
from datasets.errors import run_command
from datasets.images import to_unit_range
from tools.class_pictures import LabelledPictures, load_labelled

FORMS = ("plain", "WS", "GN", "NC")
TRAININGS = [*((form, "SGD") for form in FORMS), ("plain", "Adam"), ("GN", "Adam"), ("NC", "Adam")]
STEP_SIZES = (0.0125, 0.025, 0.05, 0.1)
MEASUREMENTS = 4


class StandardizedConv2d(nn.Conv2d):
    """Weight standardization: each output channel's weights get mean 0, and a variance that keeps that of the input."""

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True, correction=0)
        scale = (2 / self.weight[0].numel()) ** 0.5
        weight = (self.weight - mean) * torch.rsqrt(variance + 1e-5) * scale
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


def small_network(form: str, classes: int) -> nn.Sequential:
    """(N, 3, 32, 32) -> (N, classes)."""
    kinds = {"WS": StandardizedConv2d, "NC": NormalizedConv2d}
    layers: list[nn.Module] = []
    for before, after, stride in ((3, 16, 1), (16, 32, 2), (32, 64, 2), (64, 64, 1)):
        conv = kinds.get(form, nn.Conv2d)(before, after, 3, stride, 1)
        nn.init.kaiming_normal_(conv.weight)
        assert conv.bias is not None
        nn.init.normal_(conv.bias, std=0.1)  # zeros would give NC patches without any contrast
        layers += [conv, *([nn.GroupNorm(8, after)] if form == "GN" else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def gradient(loss: Callable[[], Tensor], weights: Sequence[Tensor], create_graph: bool = False) -> Tensor:
    """Of all weights as one vector."""
    parts = torch.autograd.grad(loss(), weights, create_graph=create_graph)
    return torch.cat([part.flatten() for part in parts])


def sharpness(
    loss: Callable[[], Tensor], weights: Sequence[Tensor], iterations: int = 30, tolerance: float = 0.01
) -> float:
    """The largest eigenvalue, by magnitude, of the Hessian of `loss` in `weights`, with its sign."""
    slope = gradient(loss, weights, create_graph=True)
    direction = torch.randn(slope.shape, dtype=slope.dtype, generator=torch.Generator().manual_seed(0))
    value = 0.0
    for _ in range(iterations):
        direction = direction / direction.norm()
        parts = torch.autograd.grad(slope @ direction, weights, retain_graph=True)
        product = torch.cat([part.flatten() for part in parts])
        before, value = value, float(direction @ product)
        direction = product
        if abs(value - before) <= tolerance * abs(value):
            break
    return value


@torch.no_grad()
def move(weights: Sequence[Tensor], direction: Tensor, length: float) -> None:
    """Add `length` times a vector to the weights."""
    for weight, part in zip(weights, direction.split([w.numel() for w in weights]), strict=True):
        weight += length * part.view_as(weight)


def predictiveness(
    loss: Callable[[], Tensor], weights: Sequence[Tensor], step_sizes: Sequence[float] = STEP_SIZES
) -> tuple[float, float]:
    """How the gradient changes along itself: the largest |g - g'| / |g|, and the least cosine of g and g'."""
    here = gradient(loss, weights)
    saved = [weight.detach().clone() for weight in weights]
    changes, cosines = [], []
    for size in step_sizes:
        move(weights, here, -size)
        there = gradient(loss, weights)
        changes.append(float((there - here).norm() / here.norm()))
        cosines.append(float(F.cosine_similarity(there, here, dim=0)))
        with torch.no_grad():
            for weight, value in zip(weights, saved, strict=True):
                weight.copy_(value)
    return max(changes), min(cosines)


def measure(
    form: str, optimizer: str, seed: int, data: LabelledPictures, steps: int
) -> dict[str, list[float]]:
    """Train once. Values along the training by name, and `error`, in per cent on at most 2,000 test pictures."""
    torch.manual_seed(seed)
    network = small_network(form, len(data.classes))
    weights = list(network.parameters())
    update: torch.optim.Optimizer = torch.optim.SGD(weights, 0.05, 0.9)
    if optimizer == "Adam":
        update = torch.optim.Adam(weights, 1e-3)
    pictures, labels = data.train.pictures, data.train.labels
    order = torch.Generator().manual_seed(seed)
    fixed = torch.randperm(len(labels), generator=order)[:64]

    def loss_of(chosen: Tensor) -> Tensor:
        return F.cross_entropy(network(to_unit_range(pictures[chosen])), labels[chosen])

    found: dict[str, list[float]] = {name: [] for name in ("sharpness", "change", "cosine", "loss")}
    for step in range(steps + 1):
        if step % max(1, steps // (MEASUREMENTS - 1)) == 0:
            found["sharpness"].append(sharpness(lambda: loss_of(fixed), weights))
            change, cosine = predictiveness(lambda: loss_of(fixed), weights)
            found["change"].append(change)
            found["cosine"].append(cosine)
        if step == steps:
            break
        loss = loss_of(torch.randint(len(labels), (64,), generator=order))
        found["loss"].append(loss.item())
        update.zero_grad()
        loss.backward()
        update.step()
    with torch.inference_mode():
        test = torch.arange(0, len(data.test.labels), -(-len(data.test.labels) // 2000))
        guesses = [network(to_unit_range(data.test.pictures[part])).argmax(1) for part in test.split(256)]
    found["error"] = [100 * float((torch.cat(guesses) != data.test.labels[test]).float().mean())]
    return found


PAGE = """# How smooth is the loss with normalized convolution?

Four convolutions of 3x3 (16, 32, 64, 64 channels), {steps} steps of 64 pictures, {count:,} training pictures of
CIFAR-10 (JPEG), seeds {seeds}. SGD: rate 0.05, momentum 0.9. Adam: rate 0.001. WS: weight standardization. GN: 8
groups. {CPU}, {threads} threads, Python {python}, torch {torch}, {date}.

    python -m benchmarks.smoothness DATAROOT --steps {steps} --seeds {seeds}

| form | optimizer | sharpness, start | later | gradient change | cosine | training loss | test error, % |
|---|---|---|---|---|---|---|---|
{rows}

Sharpness is the largest eigenvalue of the Hessian on a fixed batch of 64. Gradient change and cosine compare the
gradient with that up to 0.1 of its length further down. Medians over {measurements} moments and all seeds; the loss is
the mean of the last 10 steps; "later" leaves the start out.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.smoothness", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "dataroot", type=Path, help="pictures of classes: see python -m tools.classify --help"
    )
    parser.add_argument("--steps", type=int, default=60, help="of each training (default: %(default)s)")
    parser.add_argument("--seeds", default="0,1", help="with commas (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "smoothness.md")
    arguments = parser.parse_args()
    data, rows = load_labelled(arguments.dataroot, 32), []
    for form, optimizer in TRAININGS:
        found = [
            measure(form, optimizer, int(seed), data, arguments.steps) for seed in arguments.seeds.split(",")
        ]
        median = {
            name: statistics.median(value for one in found for value in one[name][name == "sharpness" :])
            for name in ("sharpness", "change", "cosine")
        }
        start = statistics.median(one["sharpness"][0] for one in found)
        loss = statistics.mean(value for one in found for value in one["loss"][-10:])
        error = statistics.mean(one["error"][0] for one in found)
        rows.append(
            f"| {form} | {optimizer} | {start:.3g} | {median['sharpness']:.3g} | {median['change']:.2f} | "
            f"{median['cosine']:.2f} | {loss:.2f} | {error:.1f} |"
        )
        print(rows[-1], flush=True)
    facts = machine("cpu") | {
        "steps": arguments.steps, "seeds": arguments.seeds, "count": len(data.train.labels), "rows": "\n".join(rows),
        "measurements": MEASUREMENTS,
    }  # fmt: skip
    write_page(arguments.output, PAGE.format(**facts))


if __name__ == "__main__":
    run_command(main)
