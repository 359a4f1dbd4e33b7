"""What a training run is: one frozen record, and the presets of the paper."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from srgan_fast.errors import UsageError
from srgan_fast.model import GeneratorConfig

Content = Literal["mse", "vgg22", "vgg54", "squeezenet"]


@dataclass(frozen=True)
class TrainConfig:
    """One training run. Sizes in pixels of HR, rates per step; the defaults are the paper's SRResNet-MSE.

    `decay` says how the learning rate goes from `learning_rate` to `final_learning_rate`: in one drop at half of the
    steps, as the paper does for SRGAN, or along a half cosine.
    """

    stage: Literal["srresnet", "srgan"] = "srresnet"
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    content: Content = "mse"
    adversarial_weight: float = 1e-3
    vgg_reduction: Literal["paper", "mean"] = "paper"
    vgg_input: Literal["torchvision", "caffe"] = "torchvision"
    degradation: Literal["bicubic", "gaussian"] = "bicubic"
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
    seed: int = 0

    def __post_init__(self) -> None:
        if self.crop % self.generator.scale or self.crop < self.generator.scale:
            raise UsageError(f"expected a crop that is a multiple of scale {self.generator.scale}, got {self.crop}")
        if self.batch < 1 or self.steps < 1 or self.learning_rate <= 0:
            raise UsageError("expected batch and steps of at least 1 and a learning rate above 0")
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
