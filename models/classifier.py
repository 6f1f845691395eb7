"""ResNet-18 for small pictures with each norm of the paper's Table 1, and batch norm over ghost batches."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock

from models.convert import Conversion, convert

ClassifierNorm = Literal["bn", Conversion]


class GhostBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that trains as if a batch (N, C, H, W) were N / `ghost` batches of `ghost` pictures.

    A ghost batch holds every (N / `ghost`)-th picture, which needs no copy. The running statistics move once a batch,
    by the mean over its ghost batches. In evaluation it is a batch norm.
    """

    def __init__(self, channels: int, ghost: int) -> None:
        super().__init__(channels)
        self.ghost = ghost

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        n, c, h, w = x.shape
        parts = n // self.ghost  # as channels, parts are normalized apart
        assert self.running_mean is not None and self.running_var is not None
        mean, var = self.running_mean.repeat(parts), self.running_var.repeat(parts)
        weight, bias = self.weight.repeat(parts), self.bias.repeat(parts)
        apart = x.reshape(self.ghost, parts * c, h, w)
        y = F.batch_norm(apart, mean, var, weight, bias, True, self.momentum or 0.0, self.eps)
        with torch.no_grad():
            self.running_mean.copy_(mean.view(parts, c).mean(0))
            self.running_var.copy_(var.view(parts, c).mean(0))
        return y.view(n, c, h, w)


def resnet18_small(classes: int, norm: ClassifierNorm, width: float = 1.0, ghost_batch: int = 0) -> nn.Module:
    """ResNet-18 with the stem for pictures of about 32 pixels: a 3x3 convolution, no pooling.

    (N, 3, H, W) -> (N, classes). width: factor of all numbers of channels. ghost_batch: pictures that a batch norm
    sees at once, 0 for the whole batch. See `convert` for the norms.

    >>> sum(p.numel() for p in resnet18_small(10, "bn").parameters())
    11173962
    """
    channels = [max(1, round(width * c)) for c in (64, 128, 256, 512)]
    layers: list[nn.Module] = [
        nn.Conv2d(3, channels[0], 3, padding=1, bias=False), nn.BatchNorm2d(channels[0]), nn.ReLU()
    ]  # fmt: skip
    before = channels[0]
    for stage, after in enumerate(channels):
        for stride in (2 if stage else 1, 1):
            shortcut = None
            if stride != 1 or before != after:
                conv = nn.Conv2d(before, after, 1, stride, bias=False)
                shortcut = nn.Sequential(conv, nn.BatchNorm2d(after))
            layers.append(BasicBlock(before, after, stride, shortcut))
            before = after
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):  # as torchvision does
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    if norm != "bn":
        convert(network, norm)
    if ghost_batch:
        for parent in list(network.modules()):
            for name, layer in parent.named_children():
                if type(layer) is nn.BatchNorm2d:
                    setattr(parent, name, GhostBatchNorm2d(layer.num_features, ghost_batch))
    return network
