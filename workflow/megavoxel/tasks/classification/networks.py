"""The networks: VGG16, ResNet50, DenseNet-169, and a small one for CPUs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

VGG16_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of the convolutions between two poolings."""
SMALL_WIDTHS = (16, 32, 64, 96)
CHANNELS_PER_GROUP = 8


class VGG16(nn.Module):
    """VGG16 (Simonyan and Zisserman, arXiv:1409.1556, 2014, configuration D), with the names of torchvision's.

    As there, an adaptive pooling to 7 x 7 lets it take any resolution.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for widths in VGG16_WIDTHS:
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096), nn.ReLU(inplace=True), nn.Dropout(),
            nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout(),
            nn.Linear(4096, classes),
        )  # fmt: skip
        for module in self.modules():
            _initialise(module)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (images, classes) of float32 (images, 3, height, width)."""
        return self.classifier(self.avgpool(self.features(image)).flatten(1))


class Residual(nn.Module):
    """x + f(x), then ReLU."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Returns a tensor with the shape of `x`."""
        return functional.relu(x + self.layers(x))


class SmallNetwork(nn.Module):
    """Nine convolutions, group norm and a mean over the plane: about 200 thousand weights, for CPUs.

    A convolution of stride 2, then on each of four levels another one and a residual one. Group norm, because its
    result does not depend on the other images of a batch: a step of several workers is that of one with all their
    images.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        channels = SMALL_WIDTHS[0]
        layers: list[nn.Module] = [*_normed(3, channels, stride=2), nn.ReLU(inplace=True)]
        for width in SMALL_WIDTHS:
            layers += [*_normed(channels, width, stride=2), nn.ReLU(inplace=True)]
            layers.append(Residual(*_normed(width, width)))
            channels = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (images, classes) of float32 (images, 3, height, width)."""
        return self.head(self.features(image).mean(dim=(2, 3)))


def build_network(name: str, classes: int, *, seed: int = 0) -> nn.Module:
    """A network with random weights that depend on the seed alone.

    Args:
        name: `vgg16`, `resnet50`, `densenet169` or `small`.
    """
    makers = {"vgg16": VGG16, "resnet50": _resnet50, "densenet169": _densenet169, "small": SmallNetwork}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return makers[name](classes)


def learns_from_one_image(name: str, classes: int, resolution: int) -> bool:
    """Whether a training step may have one image: batch norm cannot normalise a plane of one pixel by that alone."""
    with FakeTensorMode():
        try:
            build_network(name, classes).train()(torch.zeros(1, 3, resolution, resolution))
        except ValueError:  # of torch.nn.functional.batch_norm: "Expected more than 1 value per channel"
            return False
    return True


def _resnet50(classes: int) -> nn.Module:
    """MONAI's, with the first convolution and the shortcuts of torchvision's."""
    from monai.networks.nets import ResNet

    return ResNet(
        "bottleneck", [3, 4, 6, 3], [64, 128, 256, 512], spatial_dims=2, n_input_channels=3, conv1_t_stride=2,
        bias_downsample=False, num_classes=classes,
    )  # fmt: skip


def _densenet169(classes: int) -> nn.Module:
    from monai.networks.nets import DenseNet

    return DenseNet(
        spatial_dims=2, in_channels=3, out_channels=classes, init_features=64, growth_rate=32,
        block_config=(6, 12, 32, 32),
    )  # fmt: skip


def _normed(channels: int, width: int, *, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
    return [convolution, nn.GroupNorm(width // CHANNELS_PER_GROUP, width)]


def _initialise(module: nn.Module) -> None:
    """As torchvision begins VGG without weights: He's normal for convolutions, deviation 0.01 for linear layers."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0, 0.01)
        nn.init.zeros_(module.bias)
