"""The modules that blocks are made of. Tensors are (batch, channels, z, y, x)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ConvolutionNormActivation(nn.Sequential):
    """3D convolution with bias, instance normalisation (eps 1e-5, affine), leaky ReLU (0.01), as in nnU-Net."""

    def __init__(self, channels_in: int, channels_out: int, kernel: tuple[int, ...], stride: tuple[int, ...]) -> None:
        padding = tuple((size - 1) // 2 for size in kernel)
        super().__init__(
            nn.Conv3d(channels_in, channels_out, kernel, stride, padding),
            nn.InstanceNorm3d(channels_out, eps=1e-5, affine=True),
            nn.LeakyReLU(0.01, inplace=True),
        )


class UpsampleAndJoin(nn.Module):
    """Transposed convolution by `stride`, then the skip connection behind it in the channels."""

    def __init__(self, channels_in: int, channels_out: int, stride: tuple[int, ...]) -> None:
        super().__init__()
        self.upsample = nn.ConvTranspose3d(channels_in, channels_out, stride, stride)

    def forward(self, activation: Tensor, skip: Tensor) -> Tensor:
        """(batch, channels_in, …) and (batch, channels_out, …·stride) to (batch, 2·channels_out, …·stride)."""
        return torch.cat([self.upsample(activation), skip], dim=1)


def initialise(module: nn.Module) -> None:
    """Kaiming-normal weights for leaky ReLU (0.01) and zero biases, as in nnU-Net; to be used with `Module.apply`."""
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
