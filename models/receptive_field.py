"""How far a generator looks: the input pixels that an output pixel depends on, and the layers that see all of them."""

from torch import nn

from models.blocks import ResizeConv2d
from models.norms import PONO, DynamicMomentShortcut, MomentShortcut

_LOCAL = (
    nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.Dropout, nn.Identity, PONO, MomentShortcut
)  # fmt: skip
"""Layers without parts whose output depends on a bounded window of their input; batch norm and dropout in eval mode."""


def halo(network: nn.Module) -> int:
    """Input pixels around a tile that its output depends on, rounded up to `size_multiple`.

    The tile's corners lie on multiples of `size_multiple` too, so that strides meet the same pixels as in the whole
    picture. Walks from the last layer back to the first, in the reverse order of registration. Shortcuts, those of
    moments too, see less than the layers that they pass by. Norms of whole pictures are taken for local: see
    `whole_picture_layer`.

    >>> from models.build import build_generator
    >>> halo(build_generator("resnet_9blocks", ngf=2, norm="nc_ms")), halo(build_generator("resnet_6blocks", ngf=2))
    (84, 60)
    """
    multiple = int(getattr(network, "size_multiple", 1))
    shortcuts = [part for part in network.modules() if isinstance(part, DynamicMomentShortcut)]
    passed_by = {layer for shortcut in shortcuts for layer in shortcut.modules()}
    first, last = 0, multiple - 1  # pixels of the smallest tile, then of what it depends on
    for layer in reversed(list(network.modules())):
        if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) or layer in passed_by:
            continue
        stride, padding, dilation = layer.stride[0], int(layer.padding[0]), layer.dilation[0]
        span = dilation * (layer.kernel_size[0] - 1)
        if isinstance(layer, nn.ConvTranspose2d):  # output o takes input i where o = stride i - padding + tap
            first, last = -((span - padding - first) // stride), (last + padding) // stride
        else:
            first, last = first * stride - padding, last * stride - padding + span
        if isinstance(layer, ResizeConv2d):
            first, last = first // 2, last // 2
    needed = max(-first, last - (multiple - 1))
    return -(-needed // multiple) * multiple


def whole_picture_layer(network: nn.Module) -> nn.Module | None:
    """The first layer whose output depends on the whole picture, or is not known not to; None where all are local."""
    for layer in network.modules():
        is_batch_coupled = layer.training and isinstance(layer, nn.BatchNorm2d | nn.Dropout)
        if is_batch_coupled or not (isinstance(layer, _LOCAL) or any(layer.children())):
            return layer
    return None
