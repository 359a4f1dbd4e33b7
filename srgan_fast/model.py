"""The networks of SRGAN in plain PyTorch: the executable specification.

Every fast path in this project is checked against the modules of this file, so they stay simple: no kernels,
no graphs, no branches on the device. Layer shapes follow Ledig et al., figure 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Norm = Literal["batch", "none", "instance"]
PReLU = Literal["shared", "channel"]
Activation = Literal["none", "tanh"]


@dataclass(frozen=True)
class GeneratorConfig:
    """The shape of a Generator; what a weights file must say so that the network can be rebuilt.

    `norm` is the normalisation in the residual blocks and `skip_end` what follows the convolution that closes the
    long skip: the paper has batch normalisation in both places.
    """

    scale: int = 4
    blocks: int = 16
    width: int = 64
    norm: Norm = "batch"
    prelu: PReLU = "shared"
    activation: Activation = "none"
    kernel: int = 9
    skip_end: Literal["norm", "none", "prelu"] = "norm"

    def __post_init__(self) -> None:
        if self.scale not in (2, 4, 8):
            raise ValueError(f"expected scale 2, 4 or 8, got {self.scale}")
        if self.blocks < 0 or self.width < 1 or self.kernel % 2 == 0:
            raise ValueError(f"expected blocks >= 0, width >= 1 and an odd kernel, got {self}")


def _prelu(kind: PReLU, width: int) -> nn.PReLU:
    return nn.PReLU(width if kind == "channel" else 1)


def _norm(kind: Norm, width: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(width)
    if kind == "instance":
        return nn.InstanceNorm2d(width)
    return nn.Identity()


class ResidualBlock(nn.Module):
    """x + norm(conv(prelu(norm(conv(x))))), 3x3 convolutions."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        width, bias = config.width, config.norm == "none"
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=bias)
        self.norm1 = _norm(config.norm, width)
        self.prelu = _prelu(config.prelu, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=bias)
        self.norm2 = _norm(config.norm, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm2(self.conv2(self.prelu(self.norm1(self.conv1(x)))))


class SubPixelStage(nn.Module):
    """A x2 step: 3x3 convolution to four times the channels, PixelShuffle, PReLU."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.conv = nn.Conv2d(config.width, 4 * config.width, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)
        self.prelu = _prelu(config.prelu, config.width)

    def forward(self, x: Tensor) -> Tensor:
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
        width, pad = config.width, config.kernel // 2
        self.head = nn.Sequential(nn.Conv2d(3, width, config.kernel, padding=pad), _prelu(config.prelu, width))
        self.body = nn.Sequential(*(ResidualBlock(config) for _ in range(config.blocks)))
        end: nn.Module = nn.Identity()
        if config.skip_end == "norm":
            end = _norm(config.norm, width)
        elif config.skip_end == "prelu":
            end = _prelu(config.prelu, width)
        bias = config.norm == "none" or config.skip_end != "norm"
        self.skip = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=bias), end)
        self.upsample = nn.Sequential(*(SubPixelStage(config) for _ in range(int(math.log2(config.scale)))))
        self.output = nn.Conv2d(width, 3, config.kernel, padding=pad)

    def trunk(self, lr: Tensor) -> Tensor:
        """Everything at LR resolution: [n, 3, h, w] -> [n, width, h, w]."""
        features = self.head(lr)
        return features + self.skip(self.body(features))  # type: ignore[no-any-return]

    def tail(self, features: Tensor, lr: Tensor) -> Tensor:
        """Features and the LR frame they came from -> HR; this network does not need the frame again."""
        hr: Tensor = self.output(self.upsample(features))
        return torch.tanh(hr) if self.config.activation == "tanh" else hr

    def forward(self, lr: Tensor) -> Tensor:
        return self.tail(self.trunk(lr), lr)
