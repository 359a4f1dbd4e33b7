"""The networks of SRGAN in plain PyTorch: the executable specification.

Every fast path in this project is checked against the modules of this file, so they stay simple: no kernels,
no graphs, no branches on the device. Layer shapes follow Ledig et al., figure 4.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Norm = Literal["batch", "none", "instance", "instance-affine"]
PReLU = Literal["shared", "channel"]
Activation = Literal["none", "tanh"]


@dataclass(frozen=True)
class GeneratorConfig:
    """The shape of a Generator; what a weights file must say so that the network can be rebuilt.

    `norm` is the normalisation in the residual blocks and `skip_end` what follows the convolution that closes the
    long skip: the paper has batch normalisation in both places. `bias` keeps the convolution's bias before a
    normalisation; `separable` makes every convolution a depthwise one and a 1x1.
    """

    scale: int = 4
    blocks: int = 16
    width: int = 64
    norm: Norm = "batch"
    prelu: PReLU = "shared"
    activation: Activation = "none"
    kernel: int = 9
    skip_end: Literal["norm", "none", "prelu"] = "norm"
    bias: bool = False
    separable: bool = False

    def __post_init__(self) -> None:
        if self.scale not in (2, 4, 8):
            raise ValueError(f"expected scale 2, 4 or 8, got {self.scale}")
        if self.blocks < 0 or self.width < 1 or self.kernel % 2 == 0:
            got = f"{self.blocks}, {self.width} and {self.kernel}"
            raise ValueError(f"expected blocks >= 0, width >= 1 and an odd kernel, got {got}")


def _prelu(kind: PReLU, width: int) -> nn.PReLU:
    return nn.PReLU(width if kind == "channel" else 1)


def _norm(kind: Norm, width: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(width)
    if kind in ("instance", "instance-affine"):
        return nn.InstanceNorm2d(width, affine=kind == "instance-affine")
    return nn.Identity()


def _conv(config: GeneratorConfig, inputs: int, outputs: int, kernel: int = 3, *, normed: bool = False) -> nn.Module:
    bias = config.bias or not normed
    if config.separable:
        depthwise = nn.Conv2d(inputs, inputs, kernel, padding=kernel // 2, groups=inputs, bias=bias)
        return nn.Sequential(depthwise, nn.Conv2d(inputs, outputs, 1, bias=bias))
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias)


class ResidualBlock(nn.Module):
    """x + norm(conv(prelu(norm(conv(x))))), 3x3 convolutions."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        width, normed = config.width, config.norm != "none"
        self.conv1 = _conv(config, width, width, normed=normed)
        self.norm1 = _norm(config.norm, width)
        self.prelu = _prelu(config.prelu, width)
        self.conv2 = _conv(config, width, width, normed=normed)
        self.norm2 = _norm(config.norm, width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [n, width, h, w] -> maps of the same shape."""
        return x + self.norm2(self.conv2(self.prelu(self.norm1(self.conv1(x)))))


class SubPixelStage(nn.Module):
    """A x2 step: 3x3 convolution to four times the channels, PixelShuffle, PReLU."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.conv = _conv(config, config.width, 4 * config.width)
        self.shuffle = nn.PixelShuffle(2)
        self.prelu = _prelu(config.prelu, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [n, width, h, w] -> [n, width, 2h, 2w]."""
        return self.prelu(self.shuffle(self.conv(x)))


class Generator(nn.Module):
    """SRResNet, the generator of SRGAN.

    Shapes:  lr [n, 3, h, w] -> hr [n, 3, h*scale, w*scale]
    Units:   lr in [0, 1], hr in [-1, 1] (unclamped without tanh), as in the paper
    Source:  Ledig et al., arXiv:1609.04802, figure 4
    """

    def __init__(self, config: GeneratorConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or GeneratorConfig()
        width = config.width
        self.head = nn.Sequential(_conv(config, 3, width, config.kernel), _prelu(config.prelu, width))
        self.body = nn.Sequential(*(ResidualBlock(config) for _ in range(config.blocks)))
        end: nn.Module = nn.Identity()
        if config.skip_end == "norm":
            end = _norm(config.norm, width)
        elif config.skip_end == "prelu":
            end = _prelu(config.prelu, width)
        normed = config.norm != "none" and config.skip_end == "norm"
        self.skip = nn.Sequential(_conv(config, width, width, normed=normed), end)
        self.upsample = nn.Sequential(*(SubPixelStage(config) for _ in range(int(math.log2(config.scale)))))
        self.output = _conv(config, width, 3, config.kernel)

    @property
    def scale(self) -> int:
        """The enlargement factor."""
        return self.config.scale

    def trunk(self, lr: Tensor) -> Tensor:
        """Everything at LR resolution: [n, 3, h, w] -> [n, width, h, w]."""
        features = self.head(lr)
        return features + self.skip(self.body(features))

    def tail(self, features: Tensor, lr: Tensor) -> Tensor:
        """Features and the LR frame they came from -> HR; this network does not need the frame again."""
        hr: Tensor = self.output(self.upsample(features))
        return torch.tanh(hr) if self.config.activation == "tanh" else hr

    def forward(self, lr: Tensor) -> Tensor:
        """LR frames [n, 3, h, w] -> HR [n, 3, h*scale, w*scale]."""
        return self.tail(self.trunk(lr), lr)


@dataclass(frozen=True)
class CompactConfig:
    """The shape of an SRVGGNetCompact; `activation` is that between its convolutions."""

    scale: int = 4
    blocks: int = 16
    width: int = 64
    activation: Literal["prelu", "relu", "leakyrelu"] = "prelu"


class SRVGGNetCompact(nn.Module):
    """A plain chain of 3x3 convolutions at LR resolution, added to the nearest-neighbour enlargement.

    Shapes:  lr [n, 3, h, w] -> hr [n, 3, h*scale, w*scale]
    Units:   lr and hr in [0, 1]
    Source:  Wang et al., arXiv:2107.10833 (Real-ESRGAN), the network of its compact models
    """

    def __init__(self, config: CompactConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or CompactConfig()
        layers: list[nn.Module] = []
        channels = 3
        for _ in range(config.blocks + 1):
            layers += [nn.Conv2d(channels, config.width, 3, padding=1), self._activation()]
            channels = config.width
        self.body = nn.Sequential(*layers)
        self.output = nn.Conv2d(channels, 3 * config.scale**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(config.scale)

    def _activation(self) -> nn.Module:
        if self.config.activation == "prelu":
            return nn.PReLU(self.config.width)
        return nn.ReLU() if self.config.activation == "relu" else nn.LeakyReLU(0.1)

    @property
    def scale(self) -> int:
        """The enlargement factor."""
        return self.config.scale

    def trunk(self, lr: Tensor) -> Tensor:
        """Everything but the last convolution: [n, 3, h, w] -> [n, width, h, w]."""
        return self.body(lr)

    def tail(self, features: Tensor, lr: Tensor) -> Tensor:
        """Features and the frame that they came from -> HR."""
        base = F.interpolate(lr, scale_factor=self.scale, mode="nearest")
        return self.shuffle(self.output(features)) + base

    def forward(self, lr: Tensor) -> Tensor:
        """LR frames [n, 3, h, w] -> HR [n, 3, h*scale, w*scale]."""
        return self.tail(self.trunk(lr), lr)


@dataclass(frozen=True)
class MSRResNetConfig:
    """The shape of an MSRResNet; `upsample_activation` is a LeakyReLU after each sub-pixel stage."""

    scale: int = 4
    blocks: int = 16
    width: int = 64
    upsample_activation: bool = True

    def __post_init__(self) -> None:
        if self.scale not in (2, 3, 4):
            raise ValueError(f"expected scale 2, 3 or 4, got {self.scale}")


class PlainBlock(nn.Module):
    """x + conv(relu(conv(x))), 3x3 convolutions, no normalisation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [n, width, h, w] -> maps of the same shape."""
        return x + self.conv2(F.relu(self.conv1(x)))


class MSRResNet(nn.Module):
    """SRResNet as ESRGAN's authors changed it: no normalisation, 3x3 ends, added to the bilinear enlargement.

    Shapes:  lr [n, 3, h, w] -> hr [n, 3, h*scale, w*scale]; scale 2, 3 or 4
    Units:   lr and hr in [0, 1]
    Source:  Wang et al., arXiv:1809.00219, and the MSRResNet of BasicSR and, without `upsample_activation`, of mmagic
    """

    def __init__(self, config: MSRResNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or MSRResNetConfig()
        width = config.width
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Sequential(*(PlainBlock(width) for _ in range(config.blocks)))
        self.steps = (2, 2) if config.scale == 4 else (config.scale,)
        self.upsample = nn.ModuleList(nn.Conv2d(width, step**2 * width, 3, padding=1) for step in self.steps)
        self.refine = nn.Conv2d(width, width, 3, padding=1)
        self.output = nn.Conv2d(width, 3, 3, padding=1)

    @property
    def scale(self) -> int:
        """The enlargement factor."""
        return self.config.scale

    def trunk(self, lr: Tensor) -> Tensor:
        """Everything at LR resolution: [n, 3, h, w] -> [n, width, h, w]."""
        return self.body(F.leaky_relu(self.head(lr), 0.1))

    def tail(self, features: Tensor, lr: Tensor) -> Tensor:
        """Features and the frame that they came from -> HR."""
        for conv, step in zip(self.upsample, self.steps, strict=True):
            features = F.pixel_shuffle(conv(features), step)
            if self.config.upsample_activation:
                features = F.leaky_relu(features, 0.1)
        hr = self.output(F.leaky_relu(self.refine(features), 0.1))
        base = F.interpolate(lr, scale_factor=self.scale, mode="bilinear", align_corners=False)
        return hr + base.to(hr.dtype)

    def forward(self, lr: Tensor) -> Tensor:
        """LR frames [n, 3, h, w] -> HR [n, 3, h*scale, w*scale]."""
        return self.tail(self.trunk(lr), lr)


class Discriminator(nn.Module):
    """The discriminator of SRGAN: is this a photograph, or did the generator make it?

    Shapes:  [n, 3, h, w] -> logits [n]; dense layers of the paper see 6x6 maps, those of a 96x96 crop. Other crops are
             averaged to 6x6 first, which changes nothing at 96.
    Units:   images in [-1, 1]
    Source:  Ledig et al., arXiv:1609.04802, figure 4
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for outputs, stride in zip((1, 1, 2, 2, 4, 4, 8, 8), (1, 2) * 4, strict=True):
            first = channels == 3
            layers.append(nn.Conv2d(channels, outputs * width, 3, stride=stride, padding=1, bias=first))
            channels = outputs * width
            if not first:
                layers.append(nn.BatchNorm2d(channels))
            layers.append(nn.LeakyReLU(0.2))
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(6))
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(channels * 36, 16 * width), nn.LeakyReLU(0.2), nn.Linear(16 * width, 1)
        )

    def forward(self, image: Tensor) -> Tensor:
        """Images [n, 3, h, w] in [-1, 1] -> logits [n], above 0 for photographs."""
        return self.classifier(self.features(image))[:, 0]

    def probability(self, image: Tensor) -> Tensor:
        """The paper's sigmoid: the probability that an image is a photograph."""
        return torch.sigmoid(self(image))


# The networks that a weights file can name, with the configuration that rebuilds each.
ARCHITECTURES: dict[str, tuple[type[nn.Module], type[Any]]] = {
    "srresnet": (Generator, GeneratorConfig),
    "compact": (SRVGGNetCompact, CompactConfig),
    "msrresnet": (MSRResNet, MSRResNetConfig),
}


def has_global_layers(network: nn.Module) -> bool:
    """Whether some layer looks at the whole frame, so that no window can stand for it."""
    return any(isinstance(module, nn.InstanceNorm2d) for module in network.modules())


def receptive_radius(network: nn.Module, *, tail_only: bool = False) -> int | None:
    """How far an output pixel looks, in LR pixels, read off the layers as they run; None if it sees the whole frame.

    Each k x k convolution adds (k-1)/2 pixels of the resolution that it runs at. Branches count as if they were in
    series, so the figure is exact for a chain with skips and never too small. In a tail no layer looks at the whole
    frame, whatever the trunk does.
    """
    if not tail_only and has_global_layers(network):
        return None
    size = 8
    reach = [Fraction(0)]

    def add(conv: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(conv, nn.Conv2d)
        taps = (conv.kernel_size[0] - 1) * conv.dilation[0]
        reach[0] += Fraction(taps, 2) * Fraction(size, args[0].shape[-2])

    # Of its own: another thread may be running the network, whose convolutions would be counted too.
    network = copy.deepcopy(network)
    frame = next(network.parameters()).new_zeros(1, 3, size, size)
    with torch.inference_mode():
        features = None if not tail_only else network.trunk(frame)  # type: ignore[operator]
        for conv in network.modules():
            if isinstance(conv, nn.Conv2d):
                conv.register_forward_pre_hook(add)
        if tail_only:
            network.tail(features, frame)  # type: ignore[operator]
        else:
            network(frame)
    return math.ceil(reach[0])
