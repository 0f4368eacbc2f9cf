"""The modules that blocks are made of. Tensors are (batch, channels, z, y, x)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

NORMS = {"instance": nn.InstanceNorm3d, "batch": nn.BatchNorm3d}


class ConvolutionNormActivation(nn.Sequential):
    """3D convolution with bias, normalisation (eps 1e-5, affine), leaky ReLU (0.01); with `instance` as in nnU-Net."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: tuple[int, ...],
        stride: tuple[int, ...] = (1, 1, 1),
        norm: str = "instance",
    ) -> None:
        padding = tuple((size - 1) // 2 for size in kernel)
        super().__init__(
            nn.Conv3d(channels_in, channels_out, kernel, stride, padding),
            NORMS[norm](channels_out, eps=1e-5, affine=True),
            nn.LeakyReLU(0.01, inplace=True),
        )


class UpsampleAndJoin(nn.Module):
    """What makes an activation finer, then the skip connection behind it in the channels, and what else joins."""

    def __init__(self, upsample: nn.Module) -> None:
        super().__init__()
        self.upsample = upsample

    def forward(self, activation: Tensor, *joined: Tensor) -> Tensor:
        """All (batch, channels, …), `joined` finer by the stride of `upsample`, to one tensor with all channels."""
        return torch.cat([self.upsample(activation), *joined], dim=1)


def initialise(module: nn.Module) -> None:
    """Kaiming-normal weights for leaky ReLU (0.01) and zero biases, as in nnU-Net; to be used with `Module.apply`."""
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
