"""Generators: every norm at the smallest size, refusals, the way of the moments, dtypes and layouts."""

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from cuda_ops.layer import NormalizedConv2d
from cuda_ops.padding import pad
from models.blocks import ConvBlock
from models.build import build_generator, initialize
from models.names import NORM_NAMES
from models.resnet import ResnetGenerator
from models.unet import UnetGenerator

SMALL = {"resnet_9blocks": (8, 4), "resnet_6blocks": (8, 4), "unet_256": (256, 256), "unet_128": (128, 128)}
WITH_MOMENTS = ["pono_ms", "pono_dms", "nc_ms", "nc_dms"]


def base_of(norm: str, base_norm: str = "instance") -> str:
    return "none" if norm == "nc" else base_norm


def small(kind: str, norm: str, **named) -> nn.Module:
    base_norm = base_of(norm, named.pop("base_norm", "instance"))
    if kind == "resnet":
        return ResnetGenerator(ngf=8, n_blocks=2, norm=norm, base_norm=base_norm, **named)
    return UnetGenerator(num_downs=4, ngf=8, norm=norm, base_norm=base_norm, **named)


@pytest.mark.parametrize("norm", NORM_NAMES)
@pytest.mark.parametrize("name", SMALL)
def test_smallest_sizes(name: str, norm: str) -> None:
    smallest, multiple = SMALL[name]
    network = build_generator(
        name, input_nc=3, output_nc=1, ngf=8, norm=norm, base_norm=base_of(norm), dropout=True
    )
    initialize(network)
    assert (network.min_size, network.size_multiple) == (smallest, multiple)
    y = network(torch.rand(1, 3, smallest, smallest + multiple) * 2 - 1)
    assert y.shape == (1, 1, smallest, smallest + multiple)
    assert y.abs().max() <= 1
    y.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.mark.parametrize(
    ("network", "multiple", "size"),
    [
        (ResnetGenerator(ngf=4, n_blocks=1), 4, (8, 10)),
        (ResnetGenerator(ngf=4, n_blocks=1), 4, (4, 8)),
        (UnetGenerator(num_downs=3, ngf=4), 8, (16, 12)),
    ],
)
def test_wrong_sizes_are_one_sentence(network: nn.Module, multiple: int, size: tuple[int, int]) -> None:
    what = f"sides that are multiples of {multiple} and at least 8 pixels"
    words = f"{type(network).__name__} takes {what}, got height {size[0]} and width {size[1]}"
    with pytest.raises(ValueError, match=f"^{words}$"):
        network(torch.zeros(1, 3, *size))


@pytest.mark.parametrize(
    ("norm", "base_norm", "fused"),
    [("nc", "none", True), ("nc_ms", "none", True), ("nc_ms", "instance", False), ("nc_dms", "batch", False)],
)
def test_activation_is_fused_only_where_it_follows_directly(norm: str, base_norm: str, fused: bool) -> None:
    resnet = ResnetGenerator(ngf=4, n_blocks=1, norm=norm, base_norm=base_norm)
    unet = UnetGenerator(num_downs=4, ngf=4, norm=norm, base_norm=base_norm)
    assert {down.conv.activation for down in resnet.downs} == {"relu" if fused else "none"}
    assert {down.conv.activation for down in unet.downs[1:3]} == {"leaky_relu" if fused else "none"}
    if norm == "nc":
        block = resnet.blocks[0]
        assert [block.first.conv.activation, block.second.conv.activation] == ["relu", "none"]
        assert unet.downs[3].conv.activation == "relu"


def test_dropout_places() -> None:
    def places(network: nn.Module) -> list[str]:
        return [name for name, m in network.named_modules() if isinstance(m, nn.Dropout)]

    unet = build_generator("unet_256", ngf=8, dropout=True)
    assert places(unet) == ["ups.3.dropout", "ups.4.dropout", "ups.5.dropout"]  # the innermost is ups.6
    assert {unet.get_submodule(name.replace("dropout", "conv")).out_channels for name in places(unet)} == {64}
    assert len(places(build_generator("unet_128", ngf=8, dropout=True))) == 2
    resnet = build_generator("resnet_6blocks", ngf=8, dropout=True)
    assert places(resnet) == [f"blocks.{i}.dropout" for i in range(6)]
    assert not places(build_generator("resnet_6blocks", ngf=8)) + places(build_generator("unet_128", ngf=8))


@pytest.mark.parametrize("norm", NORM_NAMES)
@pytest.mark.parametrize("kind", ["resnet", "unet"])
def test_float64_and_channels_last_agree_with_float32(kind: str, norm: str) -> None:
    torch.manual_seed(0)
    network = small(kind, norm)
    x = torch.randn(2, 3, 16, 32)
    y = network(x)
    last = network.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, y, rtol=1e-4, atol=1e-5)
    wide = network.double()(x.double())
    assert wide.dtype == torch.float64
    torch.testing.assert_close(y.double(), wide, rtol=1e-3, atol=1e-4)


def layers_in_another_layout(network: nn.Module, backward: bool) -> list[str]:
    """Of a pass with channels-last images: convolutions whose input, or its gradient, does not lie so."""
    seen: list[tuple[str, Tensor]] = []

    def look(name: str, x: Tensor) -> None:
        seen.append((f"input of {name}", x))
        if backward:
            x.register_hook(lambda dx: seen.append((f"gradient of {name}", dx)))

    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    # those of DMS begin with two joined maps of one channel, which lie as they like
    layers = [(n, m) for n, m in network.named_modules() if isinstance(m, kinds) and ".dms." not in n]
    for name, layer in layers:
        layer.register_forward_pre_hook(lambda _m, x, name=name: look(name, x[0]))
    y = network(torch.randn(1, 3, 16, 32).to(memory_format=torch.channels_last).requires_grad_(backward))
    if backward:
        y.sum().backward()
    assert len(seen) == (1 + backward) * len(layers) >= 8
    return [name for name, x in seen if not x.is_contiguous(memory_format=torch.channels_last)]


@pytest.mark.parametrize("norm", ["none", "batch", "nc", "nc_ms", "nc_dms"])
@pytest.mark.parametrize("kind", ["resnet", "unet"])
def test_channels_last_stays_on_a_gpu(kind: str, norm: str) -> None:
    """Up to the last layer, of strides alone: fake tensors know the layouts of a GPU. Instance norm loses them."""
    with FakeTensorMode(), torch.device("cuda"):
        network = small(kind, norm, base_norm="batch" if norm == "batch" else "none")
        assert layers_in_another_layout(network, backward=False) == []


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("norm", ["nc", "nc_ms", "nc_dms"])
@pytest.mark.parametrize("kind", ["resnet", "unet"])
def test_channels_last_stays_forward_and_back(
    kind: str, norm: str, kernels: bool, request: pytest.FixtureRequest
) -> None:
    if kernels:
        request.getfixturevalue("kernels_on_cpu")
    network = small(kind, norm, base_norm="none").to(memory_format=torch.channels_last)
    assert layers_in_another_layout(network, backward=True) == []


class Operations(TorchDispatchMode):
    """Names of the operations that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.names.add(operation.name())
        return operation(*args, **(kwargs or {}))


def test_deterministic_algorithms_need_no_gradient_of_torchs_reflection_on_a_gpu() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        with FakeTensorMode(), torch.device("cuda"), Operations() as seen:
            small("resnet", "instance")(torch.empty(1, 3, 16, 32))
    finally:
        torch.use_deterministic_algorithms(False)
    assert "aten::flip" in seen.names
    assert not [name for name in seen.names if "reflection_pad" in name]


@pytest.mark.parametrize("pads", [[3, 3, 3, 3], [0, 2, 1, 0], [6, 6, 4, 4]])
def test_joined_slices_are_torchs_reflection(pads: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(2, 3, 5 + pads[2] + pads[3], 7 + pads[0] + pads[1], dtype=torch.float64)
    want = F.pad(x, pads, mode="reflect")
    (gradient,) = torch.autograd.grad(want, x, upstream)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    got = pad(x.to(memory_format=torch.channels_last), pads, "reflect")
    monkeypatch.undo()
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    torch.testing.assert_close(torch.autograd.grad(got, x, upstream)[0], gradient, rtol=1e-14, atol=1e-14)
    assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("norm", NORM_NAMES)
@pytest.mark.parametrize("kind", ["resnet", "unet"])
def test_bfloat16_autocast_keeps_wide_moments(kind: str, norm: str) -> None:
    torch.manual_seed(0)
    network = small(kind, norm)
    x = torch.randn(2, 3, 16, 32)
    dtypes = set()
    for module in network.modules():
        if isinstance(module, ConvBlock):
            module.register_forward_hook(lambda _m, _i, y: dtypes.update(t.dtype for t in y[1] or ()))
    full = network(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = network(x)
    y.float().square().mean().backward()
    assert y.dtype == torch.bfloat16
    assert dtypes == ({torch.float32} if norm in WITH_MOMENTS else set())
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())
    assert (y.float() - full).abs().mean() < 0.1 * full.abs().mean() + 0.02


@pytest.mark.parametrize("norm", ["pono_dms", "nc", "nc_ms"])
@pytest.mark.parametrize("kind", ["resnet", "unet"])
def test_compiles_as_one_graph(kind: str, norm: str) -> None:
    torch.manual_seed(0)
    network = small(kind, norm)
    x = torch.randn(1, 3, 16, 16)
    want = network(x)
    want_grads = torch.autograd.grad(want.square().sum(), list(network.parameters()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about torch's own internals
        got = torch.compile(network, backend="aot_eager", fullgraph=True)(x)
        got_grads = torch.autograd.grad(got.square().sum(), list(network.parameters()))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    for a, b in zip(got_grads, want_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("norm", ["none", "pono_ms", "nc", "nc_ms", "nc_dms"])
def test_without_a_base_norm_nothing_is_image_wide(norm: str) -> None:
    """`base_norm none`: one end of the image does not change the output at the other (exact tiling)."""
    torch.manual_seed(0)
    network = ResnetGenerator(ngf=4, n_blocks=1, norm=norm, base_norm="none").double()
    x = torch.randn(1, 3, 8, 128, dtype=torch.float64)
    changed = x.clone()
    changed[..., 96:] += 3
    y, other = network(x), network(changed)
    torch.testing.assert_close(other[..., :48], y[..., :48], rtol=0, atol=1e-12)
    assert (other[..., 96:] - y[..., 96:]).abs().max() > 1e-3


def test_backend_reaches_every_layer() -> None:
    for name, (side, _) in (("resnet_6blocks", (16, 4)), ("unet_128", SMALL["unet_128"])):
        named = {"ngf": 4, "norm": "nc", "base_norm": "none"}
        network, direct = (build_generator(name, nc_backend=b, **named) for b in ("reference", "direct"))
        assert {m.backend for m in network.modules() if isinstance(m, NormalizedConv2d)} == {"reference"}
        direct.load_state_dict(network.state_dict())
        x = torch.randn(1, 3, side, side)
        torch.testing.assert_close(direct(x), network(x), rtol=1e-4, atol=1e-5)
