"""Rewrites of a network for inference: other layers, the same function.

Each takes the weights apart in float64 and rounds once, so what is left between a network and its rewrite is the
order in which float32 sums are added.
"""

from __future__ import annotations

import copy
import itertools

import torch
from torch import Tensor, nn

from srgan_fast.model import Generator, SubPixelStage


def folded_weights(
    weight: Tensor, bias: Tensor | None, gamma: Tensor, beta: Tensor, mean: Tensor, variance: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution that does what it and batch normalisation after it did.

    Shapes:  weight [o, i, kh, kw], all else [o]
    Dtypes:  computed in float64 and rounded once, to the weight's
    Source:  y = gamma (W x + b - mean) / sqrt(variance + eps) + beta
    """
    gain = gamma.double() / torch.sqrt(variance.double() + eps)
    shift = bias.double() if bias is not None else torch.zeros_like(gain)
    shift = (shift - mean.double()) * gain + beta.double()
    return (weight.double() * gain.view(-1, 1, 1, 1)).to(weight.dtype), shift.to(weight.dtype)


@torch.no_grad()
def folded(network: nn.Module) -> nn.Module:
    """A copy for inference in which batch normalisation is part of the convolution that it follows."""
    network = copy.deepcopy(network).eval().requires_grad_(False)
    for module in list(network.modules()):
        children = list(module.named_children())
        for (_, conv), (name, norm) in itertools.pairwise(children):
            # Child order is execution order in every network of `model`.
            if isinstance(conv, nn.Sequential) and len(conv) and isinstance(norm, nn.BatchNorm2d):
                conv = conv[-1]
            if not (isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)):
                continue
            assert norm.running_mean is not None
            assert norm.running_var is not None
            weight, bias = folded_weights(
                conv.weight, conv.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps
            )
            conv.weight, conv.bias = (nn.Parameter(each, requires_grad=False) for each in (weight, bias))
            setattr(module, name, nn.Identity())
    return network


@torch.no_grad()
def without_last_shuffle(network: nn.Module) -> nn.Module:
    """The same network, its output convolution taken at the resolution before the last PixelShuffle; in place.

    PixelShuffle and PReLU commute, and a k x k convolution of shuffled maps is a smaller one of the maps before it,
    with a set of outputs for each sub-pixel: 9x9 from 64 maps to 3 becomes 5x5 from 256 to 12 at a quarter of the
    positions. Libraries compute outputs in blocks of 8 or 16, which three of them leave nearly empty. Zero padding
    stays what it was: a pixel outside is outside with all its sub-pixels. Networks without such an end stay as they
    are.
    """
    if not (isinstance(network, Generator) and isinstance(network.output, nn.Conv2d) and len(network.upsample)):
        return network
    stage, output = network.upsample[-1], network.output
    assert isinstance(stage, SubPixelStage)
    r = stage.shuffle.upscale_factor
    weight = unshuffled_weight(output.weight, r)
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], padding=weight.shape[2] // 2)
    conv.weight = nn.Parameter(weight, requires_grad=False)
    assert output.bias is not None
    conv.bias = nn.Parameter(output.bias.repeat_interleave(r * r), requires_grad=False)
    stage.shuffle = nn.Identity()  # type: ignore[assignment]
    if stage.prelu.num_parameters > 1:
        slopes = stage.prelu.weight.repeat_interleave(r * r)  # channel c before the shuffle is c // r^2 after it
        stage.prelu = nn.PReLU(slopes.numel())
        stage.prelu.weight = nn.Parameter(slopes, requires_grad=False)
    network.output = nn.Sequential(conv, nn.PixelShuffle(r))
    return network


def in_place(network: nn.Module) -> nn.Module:
    """The same network, each PReLU of one slope done in the memory of what it is given; in place.

    Bit for bit the same, without a copy of the widest maps: on a CPU new memory costs more than the activation. In
    every network of `model` an activation alone reads what it is given.
    """
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.PReLU) and child.num_parameters == 1:
                setattr(module, name, nn.LeakyReLU(child.weight.item(), inplace=True))
    return network


def unshuffled_weight(weight: Tensor, r: int) -> Tensor:
    """The weight that gives, on maps before PixelShuffle(r), what `weight` gives on the maps after it.

    Shapes:  [o, c, k, k] -> [o*r^2, c*r^2, m, m] with m = 2*ceil((k//2)/r) + 1; channels in PixelShuffle's order
    """
    outputs, inputs, kernel, _ = weight.shape
    reach = kernel // 2
    halo = -(-reach // r)
    size = 2 * halo + 1
    wide = weight.new_zeros(outputs, r, r, inputs, size * r, size * r)
    for row, column in itertools.product(range(r), repeat=2):
        top, left = halo * r - reach + row, halo * r - reach + column
        wide[:, row, column, :, top : top + kernel, left : left + kernel] = weight
    split = wide.view(outputs, r, r, inputs, size, r, size, r).permute(0, 1, 2, 3, 5, 7, 4, 6)
    return split.reshape(outputs * r * r, inputs * r * r, size, size)
