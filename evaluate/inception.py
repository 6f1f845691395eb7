"""The TF-2015 Inception network that FID is defined on, as pytorch-fid describes it, without its downloader.

The definition of the patched blocks is taken from the pytorch_fid package; the weights come from a file.
For speed every convolution absorbs the batch normalisation after it (exact in real arithmetic, eval mode
only).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

FEATURES = 2048


def build_inception() -> Any:
    """pytorch-fid's network with unset weights (torchvision's Inception v3, 1008 classes, patched blocks)."""
    from pytorch_fid import inception as blocks
    from torchvision.models import inception_v3

    net = inception_v3(num_classes=1008, aux_logits=False, weights=None, init_weights=False)
    net.Mixed_5b = blocks.FIDInceptionA(192, pool_features=32)
    net.Mixed_5c = blocks.FIDInceptionA(256, pool_features=64)
    net.Mixed_5d = blocks.FIDInceptionA(288, pool_features=64)
    net.Mixed_6b = blocks.FIDInceptionC(768, channels_7x7=128)
    net.Mixed_6c = blocks.FIDInceptionC(768, channels_7x7=160)
    net.Mixed_6d = blocks.FIDInceptionC(768, channels_7x7=160)
    net.Mixed_6e = blocks.FIDInceptionC(768, channels_7x7=192)
    net.Mixed_7b = blocks.FIDInceptionE_1(1280)
    net.Mixed_7c = blocks.FIDInceptionE_2(2048)
    return net


class InceptionPool(nn.Module):
    """(N, 3, 299, 299) in [-1, 1] -> (N, 2048) float32: the features before the classifier, averaged over positions."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        """state: a state dict of `build_inception()`; RuntimeError where keys or shapes differ."""
        super().__init__()
        net = build_inception()
        net.load_state_dict(dict(state))
        net.eval().requires_grad_(False)
        _fold_batch_norms(net)
        self.blocks = nn.Sequential(
            net.Conv2d_1a_3x3, net.Conv2d_2a_3x3, net.Conv2d_2b_3x3, nn.MaxPool2d(3, 2),
            net.Conv2d_3b_1x1, net.Conv2d_4a_3x3, nn.MaxPool2d(3, 2),
            net.Mixed_5b, net.Mixed_5c, net.Mixed_5d, net.Mixed_6a, net.Mixed_6b, net.Mixed_6c, net.Mixed_6d,
            net.Mixed_6e, net.Mixed_7a, net.Mixed_7b, net.Mixed_7c,
        )  # fmt: skip
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(images.contiguous(memory_format=torch.channels_last))  # (N, 2048, 8, 8)
        return x.mean(dim=(2, 3), dtype=torch.float32)


def _fold_batch_norms(net: Any) -> None:
    """Give every `BasicConv2d` (conv, bn, ReLU) one convolution with bias instead of conv and bn."""
    for module in net.modules():
        if isinstance(getattr(module, "bn", None), nn.BatchNorm2d):
            module.conv, module.bn = fuse_conv_bn_eval(module.conv, module.bn), nn.Identity()


def resize_bilinear(images: Tensor) -> Tensor:
    """(N, 3, H, W) uint8 -> (N, 3, 299, 299) in [-1, 1], as pytorch-fid: bilinear without antialiasing."""
    x = functional.interpolate(images.float() / 255, size=(299, 299), mode="bilinear", align_corners=False)
    return 2 * x - 1


def scale_clean(images: Tensor) -> Tensor:
    """(N, 3, 299, 299) float in [0, 255] (already resized by PIL) -> network range, as clean-fid: (x - 128) / 128."""
    return (images - 128) / 128
