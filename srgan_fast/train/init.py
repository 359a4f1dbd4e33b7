"""Initial weights that make a short run possible."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from srgan_fast.model import Generator


@torch.no_grad()
def interpolating_init(generator: Generator) -> None:
    """Weights under which the network starts as bilinear interpolation plus residual branches that start at zero.

    Three feature maps carry the colours from the head to the output (PReLU passes them, being positive); every other
    map starts at random and may add to the picture at once. Training then has only detail to learn, which turns the
    first thousands of steps of a short run into tens. For networks without normalisation.
    """
    colours = range(3)
    centre = generator.config.kernel // 2
    # Any: a Sequential does not say what its items are.
    head: Any = generator.head[0]
    output: Any = generator.output
    skip: Any = generator.skip[0]
    blocks: Any = generator.body
    stages: Any = generator.upsample
    for c in colours:
        head.weight[c].zero_()
        head.weight[c, c, centre, centre] = 1
        head.bias[c] = 0
    for block in blocks:
        nn.init.zeros_(block.conv2.weight)
        nn.init.zeros_(block.conv2.bias)
    skip.weight[:3].zero_()
    skip.bias[:3].zero_()
    near, far = 0.75, 0.25  # bilinear x2: the sub-pixel lies a quarter from its own pixel
    taps = (torch.tensor([far, near, 0.0]), torch.tensor([0.0, near, far]))
    for stage in stages:
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
