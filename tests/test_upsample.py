"""--upsample resize: equal taps for every pixel, in both generators, through training, translation and refusal."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from training_support import TINY, call, last_state, write_aligned

from models.blocks import ResizeConv2d, up_conv
from models.build import build_generator


def test_resize_conv_is_repeat_pad_and_convolve() -> None:
    torch.manual_seed(0)
    layer = ResizeConv2d(3, 5, bias=True).double()
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    repeated = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    padded = F.pad(repeated, (1, 1, 1, 1), mode="reflect")
    want = torch.stack(
        [
            sum(
                layer.weight[:, c, i, j, None, None, None] * padded[:, c, i : i + 8, j : j + 12]
                for c in range(3)
                for i in range(3)
                for j in range(3)
            )
            + layer.bias[:, None, None, None]
        ]
    )[0].transpose(0, 1)  # (2, 5, 8, 12)
    torch.testing.assert_close(layer(x), want)


@pytest.mark.parametrize("kernel_size", [3, 4])
def test_only_the_transposed_form_draws_a_checkerboard_on_a_flat_picture(kernel_size: int) -> None:
    torch.manual_seed(0)
    flat = torch.ones(1, 4, 8, 8)
    swing = {
        kind: up_conv(4, 2, kernel_size, kind, bias=False)(flat)[..., 4:-4, 4:-4].std(dim=(2, 3)).max().item()
        for kind in ("transposed", "resize")
    }
    assert swing["resize"] < 1e-6 < 1e-2 < swing["transposed"]


@pytest.mark.parametrize("norm", ["instance", "nc_ms"])
@pytest.mark.parametrize(("name", "size"), [("resnet_6blocks", 8), ("unet_128", 128)])
def test_generators_have_no_transposed_convolution(name: str, size: int, norm: str) -> None:
    network = build_generator(name, ngf=4, norm=norm, base_norm="instance", upsample="resize")
    assert not any(isinstance(layer, nn.ConvTranspose2d) for layer in network.modules())
    y = network(torch.rand(1, 3, size, size) * 2 - 1)
    assert y.shape == (1, 3, size, size)
    y.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


def test_a_run_keeps_its_form(tmp_path: Path) -> None:
    """Resume and test.py build the stored form; another form on resume is refused."""
    pairs = write_aligned(tmp_path / "pairs")
    runs = ["--checkpoints_dir", tmp_path / "runs", "--name", "r"]
    flags = ["--dataroot", pairs, "--model", "pix2pix", *TINY, *runs, "--upsample", "resize"]
    assert call("train", *flags, "--n_epochs", 1).code == 0
    assert call("train", *runs, "--continue_train", "--n_epochs", 2, "--device", "cpu").code == 0
    weights = last_state(tmp_path / "runs" / "r")["networks"]["G"]
    assert weights["ups.0.conv.weight"].shape == (4, 8, 3, 3)  # (out, in, kh, kw); transposed: (8, 4, 3, 3)
    assert call("test", *runs, "--dataroot", pairs, "--results_dir", tmp_path / "results").code == 0
    refused = call("train", *runs, "--continue_train", "--override", "--upsample", "transposed")
    assert refused.code == 2
    assert "upsample: resize -> transposed" in refused.error
