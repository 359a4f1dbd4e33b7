"""One optimiser update as a function of (lr, hr)."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from srgan_fast.model import Generator
from srgan_fast.train.config import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of a step: a linear warm-up, then the decay that the config names."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    start, end = config.learning_rate, config.final_learning_rate
    if config.decay == "drop":
        return start if step < config.steps // 2 else end
    if config.decay == "cosine":
        done = (step - config.warmup) / max(1, config.steps - config.warmup)
        return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return start


@torch.no_grad()
def interpolating_init(generator: Generator) -> None:
    """Weights under which the network starts as bilinear interpolation plus residual branches that start at zero.

    Three feature maps carry the colours from the head to the output (PReLU passes them, being positive); every other
    map starts at random and may add to the picture at once. Training then has only detail to learn, which turns the
    first thousands of steps of a short run into tens. For networks without normalisation.
    """
    colours = range(3)
    centre = generator.config.kernel // 2
    head, output = generator.head[0], generator.output
    for c in colours:
        head.weight[c].zero_()
        head.weight[c, c, centre, centre] = 1
        head.bias[c] = 0
    for block in generator.body:
        nn.init.zeros_(block.conv2.weight)
        nn.init.zeros_(block.conv2.bias)
    generator.skip[0].weight[:3].zero_()
    generator.skip[0].bias[:3].zero_()
    near, far = 0.75, 0.25  # bilinear x2: the sub-pixel lies a quarter from its own pixel
    taps = (torch.tensor([far, near, 0.0]), torch.tensor([0.0, near, far]))
    for stage in generator.upsample:
        for c in colours:
            for phase in range(4):
                row = 4 * c + phase
                stage.conv.weight[row].zero_()
                stage.conv.weight[row, c] = torch.outer(taps[phase // 2], taps[phase % 2])
                stage.conv.bias[row] = 0
    output.weight.mul_(0.1)
    for c in colours:
        output.weight[c, :3].zero_()
        output.weight[c, c, centre, centre] = 2  # [0, 1] to [-1, 1]
        output.bias[c] = -1


class EagerStep:
    def __init__(self, generator: nn.Module, config: TrainConfig) -> None:
        self.generator = generator.to(memory_format=torch.channels_last).train()
        self.config = config
        self.rate = torch.tensor(config.learning_rate)
        self.optimiser = torch.optim.Adam(self.generator.parameters(), lr=self.rate, betas=(0.9, 0.999), fused=True)
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)

    def __call__(self, lr: Tensor, hr: Tensor, step: int) -> dict[str, Tensor]:
        self.rate.fill_(learning_rate(self.config, step))
        lr = lr.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.precision == "bf16"):
            sr = self.generator(lr)
        loss = ((sr.float() - hr) ** 2).mean()
        self.optimiser.zero_grad()
        loss.backward()
        if self.config.clip:
            nn.utils.clip_grad_norm_(self.generator.parameters(), self.config.clip, foreach=True)
        self.optimiser.step()
        decay = min(self.config.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for mine, new in zip(self.average.parameters(), self.generator.parameters()):
                mine.lerp_(new, 1 - decay)
            for mine, new in zip(self.average.buffers(), self.generator.buffers()):
                mine.copy_(new)
        return {"content": loss.detach()}
