"""convert(): layers and parameters by number, kept weights, training, evaluation, dtypes, compiling, state dicts."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet18, resnet50
from torchvision.models.detection import (
    fasterrcnn_resnet50_fpn_v2,
    fcos_resnet50_fpn,
    retinanet_resnet50_fpn_v2,
    ssd300_vgg16,
)
from torchvision.models.mobilenetv3 import mobilenet_v3_small
from torchvision.models.resnet import BasicBlock
from torchvision.models.segmentation import deeplabv3_resnet50, lraspp_mobilenet_v3_large

from cuda_ops.layer import NormalizedConv2d
from models.convert import convert

KINDS = ["gn", "nc", "gn_nc", "bn_nc"]
PARAMETERS = {"resnet18": 11_689_512, "resnet50": 25_557_032}  # as published with the pretrained weights
CHANNELS = {"resnet18": 4_800, "resnet50": 26_560}  # of all batch norms together


def count(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(type(layer) is kind for layer in model.modules())


@pytest.mark.parametrize("norm", KINDS)
@pytest.mark.parametrize(("name", "make", "convs"), [("resnet18", resnet18, 20), ("resnet50", resnet50, 53)])
def test_resnets_by_numbers(name: str, make: Callable[[], nn.Module], convs: int, norm: str) -> None:
    with torch.device("meta"):
        model = make()
        changed = convert(model, norm)
    assert count(model, NormalizedConv2d) == (0 if norm == "gn" else convs)
    assert count(model, nn.BatchNorm2d) == (convs if norm == "bn_nc" else 0)
    assert count(model, nn.GroupNorm) == (convs if norm.startswith("gn") else 0)
    assert len(changed) == convs * (1 if norm in ("gn", "bn_nc") else 2)
    # a batch norm has a weight and a bias a channel; where it goes, the convolution gets a bias
    expected = PARAMETERS[name] - (CHANNELS[name] if norm == "nc" else 0)
    assert sum(p.numel() for p in model.parameters()) == expected


def norm_conv(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """NC from its definition, by unfold, in float64."""
    patches = F.unfold(x, conv.kernel_size, conv.dilation, conv.padding, conv.stride)  # (N, C k k, L)
    patches = (patches - patches.mean(1, keepdim=True)) / (patches.var(1, keepdim=True) + 1e-5).sqrt()
    y = conv.weight.flatten(1) @ patches
    side = (x.shape[-1] + 2 * conv.padding[0] - conv.kernel_size[0]) // conv.stride[0] + 1
    return y.unflatten(-1, (side, side)) + (0 if conv.bias is None else conv.bias[:, None, None])


def residual_network() -> nn.Module:
    """A small network with what a ResNet has: 3x3 and 1x1 convolutions, strides, a norm each."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 48, 1, stride=2, bias=False), nn.BatchNorm2d(48), nn.ReLU(),
    )  # fmt: skip


def test_the_weights_are_kept_and_the_result_is_the_definition() -> None:
    torch.manual_seed(0)
    plain = residual_network().double()
    nn.init.normal_(plain[1].bias)
    for norm in ("nc", "gn_nc"):
        model = copy.deepcopy(plain)
        convert(model, norm)
        y = x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
        for conv, batch_norm, groups in ((plain[0], plain[1], 32), (plain[3], plain[4], 16)):
            y = norm_conv(y, conv)
            if norm == "gn_nc":
                y = F.group_norm(y, groups, batch_norm.weight, batch_norm.bias)
            y = F.relu(y)
        torch.testing.assert_close(model(x), y)


def test_shared_convolutions_stay_shared_and_a_refused_model_is_as_it_was() -> None:
    shared = nn.Conv2d(8, 8, 3, padding=1)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    assert list(convert(model, "nc")) == ["0", "2"]
    assert model[0] is model[2] and type(model[0]) is NormalizedConv2d

    class Own(nn.Conv2d):
        pass

    model = nn.Sequential(nn.Conv2d(3, 8, 3), Own(8, 8, 3))
    with pytest.raises(ValueError, match="1 is a Own"):
        convert(model, "nc")
    assert type(model[0]) is nn.Conv2d
    assert convert(model, "nc", keep=["1"]) == {"0": "NormalizedConv2d"}
    assert convert(model, "nc", keep=["1"]) == {}  # a second time, nothing is left to do


def test_what_follows_may_write_into_the_output(kernels_on_cpu: None) -> None:
    """torchvision's activations and residual sums do; the kernels keep their output for the backward pass."""
    for norm in KINDS:
        torch.manual_seed(0)
        model = convert_small(norm)
        for layer in model.modules():
            if isinstance(layer, NormalizedConv2d):
                layer.backend = "cuda"
        loss = model(torch.randn(2, 3, 16, 16)).square().sum()
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())


def convert_small(norm: str) -> nn.Module:
    model = BasicNet()
    convert(model, norm)  # type: ignore[arg-type]
    return model


class BasicNet(nn.Module):
    """A residual block of torchvision, and a convolution without a norm before an activation in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True))
        self.block = BasicBlock(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block(self.first(x))
        return y


def test_what_stays_plain() -> None:
    """Depthwise convolutions, and the predictors of torchvision's models."""
    with torch.device("meta"):
        small = mobilenet_v3_small()
        detector = fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None)
        segmenter = deeplabv3_resnet50(weights=None, weights_backbone=None, aux_loss=True)
        for model in (small, detector, segmenter):
            convert(model, "nc")

    def plain(model: nn.Module) -> set[str]:
        return {name for name, layer in model.named_modules() if type(layer) is nn.Conv2d}

    assert plain(small)
    assert all(small.get_submodule(name).groups > 1 for name in plain(small))
    assert plain(detector) == {"rpn.head.cls_logits", "rpn.head.bbox_pred"}
    assert plain(segmenter) == {"classifier.4", "aux_classifier.4"}
    assert not any(
        "BatchNorm" in type(layer).__name__ for layer in [*detector.modules(), *segmenter.modules()]
    )


def test_the_last_convolutions_of_all_detectors_and_segmenters_stay_plain() -> None:
    """All plain convolutions that are left, by what they compute; and no norm is left."""
    left = {
        retinanet_resnet50_fpn_v2: {"cls_logits", "bbox_reg"},
        fcos_resnet50_fpn: {"cls_logits", "bbox_reg", "bbox_ctrness"},
        ssd300_vgg16: {f"module_list.{scale}" for scale in range(6)},
        lraspp_mobilenet_v3_large: {"low_classifier", "high_classifier"},
    }
    for make, wanted in left.items():
        with torch.device("meta"):
            model = make(weights=None, weights_backbone=None)
            convert(model, "nc")
        plain = [
            name
            for name, layer in model.named_modules()
            if type(layer) is nn.Conv2d and not layer.groups == layer.in_channels > 1
        ]
        assert {end for end in wanted if any(name.endswith(end) for name in plain)} == wanted
        assert all(name.endswith(tuple(wanted)) for name in plain)
        norms = (nn.GroupNorm, nn.BatchNorm2d)
        assert not [name for name, layer in model.named_modules() if isinstance(layer, norms)]


def test_frozen_norms_of_a_pretrained_backbone() -> None:
    from torchvision.ops import FrozenBatchNorm2d

    frozen = FrozenBatchNorm2d(64)
    frozen.weight.fill_(3.0)
    model = nn.Sequential(nn.Conv2d(3, 64, 3, bias=False), frozen)
    assert convert(model, "gn") == {"1": "GroupNorm"}
    assert isinstance(model[1].weight, nn.Parameter)
    assert model[1].weight.unique().tolist() == [3.0]


def losses(name: str, model: nn.Module) -> Tensor:
    """The loss of one training step of each kind of model on random pictures."""
    images = torch.rand(2, 3, 64, 64)
    if name == "fasterrcnn":
        target = {"boxes": torch.tensor([[4.0, 4.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
        return sum(model(list(images), [target, target]).values())
    output = model(images)
    if name == "deeplabv3":
        return F.cross_entropy(output["out"], torch.zeros(2, 64, 64, dtype=torch.int64))
    return F.cross_entropy(output, torch.zeros(2, dtype=torch.int64))


MODELS = {
    "resnet18": lambda: resnet18(num_classes=5),
    "fasterrcnn": lambda: fasterrcnn_resnet50_fpn_v2(
        weights=None, weights_backbone=None, num_classes=3, min_size=64, max_size=64
    ),
    "deeplabv3": lambda: deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=3),
}


STEPS = [
    *(("resnet18", norm, dtype) for norm in KINDS for dtype in ("float32", "bfloat16")),
    ("fasterrcnn", "nc", "float32"),
    ("deeplabv3", "gn_nc", "bfloat16"),
]


@pytest.mark.parametrize(("name", "norm", "dtype"), STEPS)
def test_a_step_and_an_evaluation(name: str, norm: str, dtype: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]()
    convert(model, norm)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        losses(name, model.train()).backward()
    gradients = {key: p.grad for key, p in model.named_parameters()}
    assert all(g is not None and torch.isfinite(g).all() for key, g in gradients.items() if "aux" not in key)
    fresh = MODELS[name]()
    convert(fresh, norm)
    fresh.load_state_dict(model.state_dict())
    with torch.inference_mode():
        outputs = [
            m.eval()(list(torch.ones(1, 3, 64, 64)))
            if name == "fasterrcnn"
            else m.eval()(torch.ones(1, 3, 64, 64))
            for m in (model, fresh)
        ]
    torch.testing.assert_close(*outputs, rtol=0, atol=0)


def test_compiled() -> None:
    torch.manual_seed(0)
    model = residual_network()
    convert(model, "nc")
    x = torch.randn(2, 3, 8, 8)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"^norm: unknown name 'ln', known are gn, nc, gn_nc, bn_nc$"):
        convert(nn.Sequential(), "ln")

    class Own(nn.Conv2d):
        pass

    model = nn.Sequential(Own(3, 4, 3))
    with pytest.raises(ValueError, match=r"^0 is a Own, only nn\.Conv2d can be replaced"):
        convert(model, "nc")
    assert convert(model, "nc", keep=["0"]) == {}
