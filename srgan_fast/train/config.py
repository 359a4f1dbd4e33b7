"""What a training run is: one frozen record, and the presets of the paper."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from srgan_fast.errors import UsageError
from srgan_fast.model import GeneratorConfig

Content = Literal["mse", "vgg22", "vgg54", "squeezenet"]

# LR pixels around a crop from which its LR is the one that the whole image would give.
CONTEXT = 2
# Batches are drawn from seed * 1_000_003 + step, which has to stay inside torch's 64 bits.
_SEEDS = 2**40
# HR pixels a side below which the discriminator and the feature networks run out of positions.
_SMALLEST_LOOK = 32


@dataclass(frozen=True)
class TrainConfig:
    """One training run. Sizes in pixels of HR, rates per step; the defaults are the paper's SRResNet-MSE.

    `decay` says how the learning rate goes from `learning_rate` to `final_learning_rate`: in one drop at half of the
    steps, as the paper does for SRGAN, or along a half cosine. `degradation` says where LR comes from: made from HR by
    one of two kernels, or read from a folder of pairs. `batch` is that of all ranks together; with `sync_bn` batch
    normalisation looks at all of it, else at the rows of each rank. `pixel_weight` adds the MSE, so weighted, to a loss
    of features, which the paper does not: features poorer than VGG's leave patterns in the picture; it keeps them down.
    """

    stage: Literal["srresnet", "srgan"] = "srresnet"
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    content: Content = "mse"
    adversarial_weight: float = 1e-3
    pixel_weight: float = 0.0
    vgg_reduction: Literal["paper", "mean"] = "paper"
    vgg_input: Literal["torchvision", "caffe"] = "torchvision"
    degradation: Literal["bicubic", "gaussian", "pairs"] = "bicubic"
    blur_sigma: float = 1.0
    crop: int = 96
    batch: int = 16
    steps: int = 1_000_000
    learning_rate: float = 1e-4
    final_learning_rate: float = 1e-4
    decay: Literal["none", "drop", "cosine"] = "none"
    warmup: int = 0
    ema: float = 0.999
    clip: float = 0.0
    init: Literal["torch", "interpolating"] = "torch"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    sync_bn: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.crop % self.generator.scale or self.crop < self.generator.scale:
            raise UsageError(f"expected a crop that is a multiple of scale {self.generator.scale}, got {self.crop}")
        if self.batch < 1 or self.steps < 1 or not 0 < self.learning_rate < math.inf:
            raise UsageError(
                "expected batch and steps of at least 1 and a finite learning rate above 0,"
                f" got {self.batch}, {self.steps} and {self.learning_rate}"
            )
        if self.warmup < 0 or not 0 <= self.final_learning_rate < math.inf:
            raise UsageError(
                "expected a warmup of at least 0 steps and a finite final learning rate of at least 0,"
                f" got {self.warmup} and {self.final_learning_rate}"
            )
        # Three deviations are what the blur reaches.
        if self.degradation == "gaussian" and not 0 < 3 * self.blur_sigma <= CONTEXT * self.generator.scale:
            raise UsageError(
                f"expected a blur_sigma above 0 and up to {CONTEXT * self.generator.scale / 3:.2f}, for crops at scale"
                f" {self.generator.scale} are cut with {CONTEXT} LR pixels around them, got {self.blur_sigma}"
            )
        if not 0 <= self.clip < math.inf:
            raise UsageError(f"expected clip of at least 0 (0 clips nothing), got {self.clip}")
        if not 0 <= self.pixel_weight < math.inf or (self.pixel_weight and self.content == "mse"):
            raise UsageError(f"expected a finite pixel weight of at least 0, beside features, got {self.pixel_weight}")
        if not 0 <= self.adversarial_weight < math.inf:
            raise UsageError(f"expected a finite adversarial weight of at least 0, got {self.adversarial_weight}")
        if not 0 <= self.seed < _SEEDS:
            raise UsageError(f"expected a seed in 0..{_SEEDS - 1}, got {self.seed}")
        if self.crop < _SMALLEST_LOOK and (self.stage == "srgan" or self.content != "mse"):
            raise UsageError(
                f"expected a crop of at least {_SMALLEST_LOOK} for the srgan stage and for feature losses, whose"
                f" strides leave nothing of a smaller one, got {self.crop}"
            )
        if not 0 <= self.ema < 1:
            raise UsageError(f"expected ema in [0, 1), got {self.ema}")


_SRRESNET = TrainConfig()
_SRGAN = replace(_SRRESNET, stage="srgan", steps=200_000, final_learning_rate=1e-5, decay="drop")

PRESETS: dict[str, TrainConfig] = {
    "paper-srresnet-mse": _SRRESNET,
    "paper-srresnet-vgg22": replace(_SRRESNET, content="vgg22"),
    "paper-srgan-mse": _SRGAN,
    "paper-srgan-vgg22": replace(_SRGAN, content="vgg22"),
    "paper-srgan-vgg54": replace(_SRGAN, content="vgg54"),
    "kaggle-blur-x2": replace(
        _SRRESNET, generator=GeneratorConfig(scale=2), degradation="gaussian", crop=96, steps=100_000
    ),
    # The recipe of the weights that this package ships: the same network trained in hours on a CPU.
    "cpu-srresnet-mse": replace(
        _SRRESNET,
        generator=GeneratorConfig(norm="none"),
        init="interpolating",
        batch=8,
        steps=4_500,
        learning_rate=8e-4,
        final_learning_rate=1e-6,
        decay="cosine",
        warmup=200,
        clip=0.1,
        precision="bf16",
    ),
}
