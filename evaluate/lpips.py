"""LPIPS v0.1 with an AlexNet trunk, from features, so that every picture passes the network once.

Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features", equation 1: features of five layers,
normalised over channels, squared differences weighted per channel by the published linear heads, mean over
positions, summed over layers. The distance is quadratic in the features, so the mean over *all* pairs of
two sets needs only each set's mean feature vector and mean weighted square norm: linear in the number of
pictures, and exact.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

CONVOLUTIONS = (0, 3, 6, 8, 10)  # places in torchvision's AlexNet.features; LPIPS taps the ReLU after each
CHANNELS = (64, 192, 384, 256, 256)

# Published constants of LPIPS v0.1: what ImageNet's means and deviations become for inputs in [-1, 1].
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)

SMALLEST_SIDE = 31  # pixels: the second pooling needs them

EPSILON = 1e-10  # added to the norm over channels, as the published metric does


class AlexNetTrunk(nn.Module):
    """(N, 3, H, W) in [-1, 1] -> five normalised feature maps (N, C_l, H_l, W_l); H, W of 31 pixels or more."""

    shift: Tensor
    scale: Tensor

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        """state: `features.{0,3,6,8,10}.{weight,bias}` of torchvision's AlexNet; other keys are not used."""
        super().__init__()
        shapes = ((3, 11, 4, 2), (64, 5, 1, 2), (192, 3, 1, 1), (384, 3, 1, 1), (256, 3, 1, 1))
        self.convolutions = nn.ModuleList(
            nn.Conv2d(in_channels, out_channels, kernel, stride, padding)
            for (in_channels, kernel, stride, padding), out_channels in zip(shapes, CHANNELS, strict=True)
        )
        for place, convolution in zip(CONVOLUTIONS, self.convolutions, strict=True):
            convolution.load_state_dict({k: state[f"features.{place}.{k}"] for k in ("weight", "bias")})
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = (images - self.shift).div_(self.scale)
        maps = []
        for layer, convolution in enumerate(self.convolutions):
            if layer in (1, 2):
                x = functional.max_pool2d(x, 3, 2)
            x = functional.relu(convolution(x))
            maps.append(x / (x.square().sum(dim=1, keepdim=True).sqrt() + EPSILON))
        return maps


def heads_from_state(state: Mapping[str, Tensor]) -> list[Tensor]:
    """The five weight vectors (C_l,) from the file of linear heads that the lpips package ships."""
    return [state[f"lin{layer}.model.1.weight"].reshape(-1) for layer in range(len(CHANNELS))]


def distance(a: Iterable[Tensor], b: Iterable[Tensor], heads: Sequence[Tensor]) -> Tensor:
    """LPIPS of N pairs from the feature maps of both sides (each (N, C_l, H_l, W_l)) -> (N,) float64."""
    layers = [
        torch.einsum("nchw,c->nhw", (x - y).square_(), head).mean(dim=(1, 2)).double()
        for x, y, head in zip(a, b, heads, strict=True)
    ]
    return torch.stack(layers).sum(dim=0)


@dataclass(frozen=True)
class FeatureSum:
    """What the mean over all pairs needs of one set: sum of feature vectors (D,), sum of square norms, count."""

    vector: Tensor
    squares: float
    count: int

    def __add__(self, other: "FeatureSum") -> "FeatureSum":
        return FeatureSum(self.vector + other.vector, self.squares + other.squares, self.count + other.count)


def feature_sum(maps: Sequence[Tensor], heads: Sequence[Tensor]) -> FeatureSum:
    """The sum over a batch, in float64. The vector carries each layer's 1 / (H W) as its square root."""
    vectors, squares = [], 0.0
    for x, head in zip(maps, heads, strict=True):
        positions = x.shape[2] * x.shape[3]
        squares += float(torch.einsum("nchw,c->", x.square(), head).double()) / positions
        vectors.append((x.sum(dim=0, dtype=torch.float64) / positions**0.5).flatten())
    return FeatureSum(torch.cat(vectors), squares, len(maps[0]))


def head_vector(heads: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> Tensor:
    """The heads' weights laid out like a `FeatureSum.vector` for feature maps of these (H_l, W_l)."""
    return torch.cat([h.double().repeat_interleave(y * x) for h, (y, x) in zip(heads, sizes, strict=True)])


def all_pairs_mean(a: FeatureSum, b: FeatureSum, weights: Tensor) -> float:
    """Mean LPIPS over every (picture of a, picture of b): |a|^2 + |b|^2 - 2 a.b, averaged before multiplying."""
    cross = torch.dot(a.vector / a.count, b.vector / b.count * weights)
    return a.squares / a.count + b.squares / b.count - 2.0 * float(cross)


def mean_to_set(maps: Sequence[Tensor], total: FeatureSum, heads: Sequence[Tensor]) -> float:
    """Mean LPIPS of one picture, maps (1, C_l, H_l, W_l), to every picture of a set."""
    own = feature_sum(maps, heads)
    weights = head_vector(heads, [(x.shape[2], x.shape[3]) for x in maps])
    return all_pairs_mean(
        own, FeatureSum(total.vector.to(weights.device), total.squares, total.count), weights
    )


def map_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """(H_l, W_l) of the five maps for an input of this size."""

    def shrink(side: int) -> list[int]:
        first = (side + 2 * 2 - 11) // 4 + 1
        second = (first - 3) // 2 + 1
        third = (second - 3) // 2 + 1
        return [first, second, third, third, third]

    return list(zip(shrink(height), shrink(width), strict=True))
