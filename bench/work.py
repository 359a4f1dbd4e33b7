"""What networks and training steps have to compute: operations (two a multiply-add), counted from their layers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

# Passes of a step over each of its networks. A backward pass is one for the inputs and one for the weights.
# The discriminator: the generated images for each of the two losses, the photographs, the inputs for the generator's
# loss, both for the two inputs of its own. The features: both images, and the inputs for the generated one.
_GENERATOR, _DISCRIMINATOR, _FEATURES = 3, 2 + 1 + 1 + 4, 3


def forward(network: nn.Module, shape: tuple[int, ...], itemsize: int) -> tuple[int, int]:
    """Operations of a network's convolutions and dense layers, and the bytes that they read and write once.

    Counted from the layers as they run, without memory or arithmetic.
    """
    total = [0, 0]

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight: Any = layer.weight
        total[0] += 2 * output.numel() * weight[0].numel()
        total[1] += (inputs[0].numel() + output.numel() + weight.numel()) * itemsize

    shadow = copy.deepcopy(network).to("meta").eval()
    for module in shadow.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.inference_mode():
        shadow(torch.empty(*shape, device="meta"))
    return total[0], total[1]


def of_step(
    generator: nn.Module,
    discriminator: nn.Module | None,
    features: nn.Module | None,
    lr: tuple[int, ...],
    hr: tuple[int, ...],
) -> int:
    """Operations of a training step on batches of these shapes, whatever a step saves or repeats of them."""
    total = _GENERATOR * forward(generator, lr, 4)[0]
    for network, passes in ((discriminator, _DISCRIMINATOR), (features, _FEATURES)):
        if network is not None:
            total += passes * forward(network, hr, 4)[0]
    return total
