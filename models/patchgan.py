"""The discriminators: PatchGAN judges overlapping patches, PixelDiscriminator single pixels.

They always use the base norm, whatever the generator's norm is. Their output is a map of logits (no sigmoid).
"""

from torch import Tensor, nn

from models.blocks import ConvBlock, check_size
from models.names import BaseNormName
from models.norms import BASE_NORMS


class PatchGAN(nn.Module):
    """Images (N, input_nc, H, W) -> one logit per patch, (N, 1, floor(H/2^n) - 2, floor(W/2^n) - 2).

    n = `n_layers` stride-2 4x4 convs, then two of stride 1; each but the first and last with the base norm,
    each but the last with LeakyReLU(0.2). The receptive field is 70x70 at n_layers 3 and 16, 34, 142, 286 at
    1, 2, 4, 5. The sides of an image must be at least `min_size` = 3·2^n_layers pixels (ValueError
    otherwise). 2,764,737 parameters on 3 channels with instance norm, 2,768,705 on 6 channels with batch norm
    (ndf 64).
    Source: Isola et al. 2017 (pix2pix), section 3.2.2 and appendix 6.1.2.
    """

    def __init__(
        self, input_nc: int = 3, ndf: int = 64, n_layers: int = 3, base_norm: BaseNormName = "instance"
    ) -> None:
        super().__init__()
        self.min_size = 3 * 2**n_layers
        width = [ndf * min(2**layer, 8) for layer in range(n_layers + 1)]
        self.first = ConvBlock(input_nc, ndf, 4, stride=2, padding=1, activation="leaky_relu")
        self.layers = nn.ModuleList(
            ConvBlock(
                width[layer - 1],
                width[layer],
                4,
                stride=2 if layer < n_layers else 1,
                padding=1,
                base_norm=base_norm,
                activation="leaky_relu",
            )
            for layer in range(1, n_layers + 1)
        )
        self.out = nn.Conv2d(width[-1], 1, 4, stride=1, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        check_size(self, x, 1, self.min_size)
        x, _ = self.first(x)  # (N, ndf, H/2, W/2), halves rounded down
        for layer in self.layers:
            x, _ = layer(x)  # (N, c_i, H/2^i, W/2^i), then (N, c_n, H/2^n - 1, W/2^n - 1)
        return self.out(x)  # (N, 1, H/2^n - 2, W/2^n - 2)


class PixelDiscriminator(nn.Module):
    """Images (N, input_nc, H, W) -> one logit per pixel, (N, 1, H, W), by three 1x1 convs.

    Source: Isola et al. 2017 (pix2pix), the 1x1 PixelGAN of appendix 6.1.2.
    """

    min_size = 1

    def __init__(self, input_nc: int = 3, ndf: int = 64, base_norm: BaseNormName = "instance") -> None:
        super().__init__()
        self.first = ConvBlock(input_nc, ndf, 1, activation="leaky_relu")
        self.second = ConvBlock(ndf, 2 * ndf, 1, base_norm=base_norm, activation="leaky_relu")
        self.out = nn.Conv2d(2 * ndf, 1, 1, bias=BASE_NORMS[base_norm].bias_before)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.first(x)  # (N, ndf, H, W)
        x, _ = self.second(x)  # (N, 2 ndf, H, W)
        return self.out(x)  # (N, 1, H, W)
