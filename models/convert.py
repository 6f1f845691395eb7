"""Normalized convolution in any network: replaces the convolutions and norms of a model, such as torchvision's.

The paper (Tables 1 and 2) does not say which convolutions it replaces. This reading is ours: all of them, except
depthwise convolutions, where a patch has one channel, and the last ones, whose outputs are scores and offsets.

    nc      every convolution becomes NC with a bias; batch, group and instance norms go
    gn_nc   every convolution becomes NC, every batch norm becomes a GroupNorm
    bn_nc   every convolution becomes NC, the norms stay
    gn      the convolutions stay, every batch norm becomes a GroupNorm
"""

import math
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torchvision.ops import FrozenBatchNorm2d

from cuda_ops.layer import NormalizedConv2d

Conversion = Literal["gn", "nc", "gn_nc", "bn_nc"]

PREDICTORS = (
    "*cls_logits",
    "*bbox_pred",
    "*bbox_reg",
    "*bbox_ctrness",
    "*_head.module_list.*",  # of SSD
    "*mask_fcn_logits",
    "*kps_score_lowres",
    "classifier.4",
    "aux_classifier.4",
    "classifier.*_classifier",  # of LRASPP
)
"""Names of the last convolutions of torchvision's detectors, and of its DeepLabV3, FCN and LRASPP."""

GROUPS = 32


def convert(model: nn.Module, norm: Conversion, keep: Sequence[str] = PREDICTORS) -> dict[str, str]:
    """Change `model` in place; returns the name of each replaced layer -> the class that stands there now.

    keep: patterns (fnmatch) of names of convolutions that stay. Weights, biases and the affine parameters of norms are
    kept; a bias that a norm made superfluous is added where the norm goes, and starts at 0. A GroupNorm has 32 groups,
    or for a number of channels that 32 does not divide their greatest common divisor. Raises ValueError for an unknown
    `norm` and for a convolution that is neither `nn.Conv2d` itself nor kept.

    >>> from torchvision.models import resnet18
    >>> changed = convert(resnet18(), "nc")
    >>> changed["conv1"], changed["bn1"], len(changed)
    ('NormalizedConv2d', 'Identity', 40)
    """
    if norm not in get_args(Conversion):
        raise ValueError(f"norm: unknown name {norm!r}, known are {', '.join(get_args(Conversion))}")
    changed: dict[str, str] = {}
    made: dict[nn.Module, nn.Module] = {}
    places = []
    for parent, attribute, name, layer in _layers(model):
        if layer in made:  # used in several places
            places.append((parent, attribute, name, made[layer]))
            continue
        if norm == "nc" and isinstance(layer, _BatchNorm | FrozenBatchNorm2d | _InstanceNorm | nn.GroupNorm):
            new: nn.Module = nn.Identity()
        elif isinstance(layer, _BatchNorm | FrozenBatchNorm2d) and norm != "bn_nc":
            new = _group_norm(layer)
        elif isinstance(layer, nn.Conv2d) and not isinstance(layer, NormalizedConv2d) and norm != "gn":
            if layer.groups == layer.in_channels > 1 or any(fnmatchcase(name, pattern) for pattern in keep):
                continue
            if type(layer) is not nn.Conv2d:
                raise ValueError(
                    f"{name} is a {type(layer).__name__}, only nn.Conv2d can be replaced; `keep` leaves it"
                )
            new = _normalized(layer, bias=norm == "nc" or layer.bias is not None)
        else:
            continue
        made[layer] = new.train(layer.training)
        places.append((parent, attribute, name, new))
    for parent, attribute, name, new in places:  # all or nothing
        setattr(parent, attribute, new)
        changed[name] = type(new).__name__
    return changed


def _layers(model: nn.Module) -> Iterator[tuple[nn.Module, str, str, nn.Module]]:
    """(parent, attribute of the parent, full name, layer) of every layer below the model."""
    for prefix, parent in model.named_modules():
        for attribute, layer in parent._modules.items():  # named_children would leave out a second use
            if layer is not None:
                yield parent, attribute, f"{prefix}.{attribute}" if prefix else attribute, layer


def _normalized(conv: nn.Conv2d, bias: bool) -> NormalizedConv2d:
    """NC with the weights of a convolution."""
    new = NormalizedConv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        conv.dilation,  # type: ignore[arg-type]
        conv.groups,
        bias,
        conv.padding_mode,
        device="meta",
    )
    new.weight = conv.weight
    if bias:
        new.bias = (
            conv.bias if conv.bias is not None else nn.Parameter(conv.weight.new_zeros(conv.out_channels))
        )
        new.register_forward_hook(_apart)  # no norm follows
    return new


def _apart(layer: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> Tensor | None:
    """A copy, where the layer's kernels keep y for the backward pass.

    What follows may write into it, as torchvision's activations and residual sums do.
    """
    return y.clone() if y.requires_grad and (y.device.type != "cpu" or layer.backend == "cuda") else None


def _group_norm(norm: _BatchNorm | FrozenBatchNorm2d) -> nn.GroupNorm:
    """A GroupNorm with the affine parameters of a batch norm; those of a frozen one become parameters."""
    channels = norm.weight.shape[0] if norm.weight is not None else norm.num_features
    new = nn.GroupNorm(math.gcd(GROUPS, channels), channels, norm.eps, affine=norm.weight is not None)
    for name in ("weight", "bias") if norm.weight is not None else ():
        value = getattr(norm, name)
        setattr(new, name, value if isinstance(value, nn.Parameter) else nn.Parameter(value.detach().clone()))
    return new
