"""Batch normalisation by given statistics, activation and skip in one pass over NHWC maps, with gradients.

y = act((x - mean) / sqrt(variance + eps) * gamma + beta) + skip. The activation multiplies negative values: by a slope
of each channel or one that they share (PReLU, with gradient), by a constant (LeakyReLU), or by 1.

mean and variance are constants to autograd, but the gradient of x has their share: it is that of training-mode batch
normalisation, for statistics of this very x (of `statistics`, or of the convolution that made it, `conv3x3_stats`).
Everything is recomputed from x in the backward pass; nothing else is kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from srgan_fast.kernels import launch, takes_reference
from srgan_fast.kernels.batchnorm_act.cases import BENCH_CASES, CASES
from srgan_fast.kernels.batchnorm_act.reference import batchnorm_act as reference
from srgan_fast.kernels.batchnorm_act.reference import batchnorm_act_backward as reference_backward
from srgan_fast.kernels.batchnorm_act.reference import statistics as reference_statistics
from srgan_fast.kernels.contract import expect, expect_batch, output_for

__all__ = [
    "BENCH_CASES",
    "CASES",
    "backward",
    "batchnorm_act",
    "bytes_moved",
    "channel_statistics",
    "choose",
    "flops",
    "reference",
    "reference_backward",
    "reference_statistics",
    "run",
    "statistics",
]


def run(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor,
    beta: Tensor,
    slopes: Tensor | None = None,
    skip: Tensor | None = None,
    slope: float = 1.0,
    eps: float = 1e-5,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Normalise and activate by the fastest implementation that the device has; `slope` counts where no slopes are.

    Shapes:  x, skip and result [n, h, w, c], mean, variance, gamma and beta [c], slopes [c] or [1]
    Dtypes:  x, skip and result float16, bfloat16 or float32, all one; the vectors float32; computed in float32
    Raises:  ValueError for other shapes or dtypes
    """
    n, h, w, channels = _shape(x, mean, variance, gamma, beta, slopes)
    if skip is not None:
        expect("skip", skip, n, h, w, channels, dtype=x.dtype)
    out = output_for(x, out, n, h, w, channels)
    expect_batch("x", x)
    if takes_reference(x):
        return out.copy_(reference(x, mean, variance, gamma, beta, slopes, skip, slope, eps))
    from srgan_fast.kernels.batchnorm_act import kernel

    x = x.contiguous()
    grid, cut = _cut(x)
    kernel.batchnorm_act_pointer[grid](
        x,
        *_vectors(mean, variance, gamma, beta, slopes),
        x if skip is None else skip.contiguous(),
        out,
        n * h * w,
        slope,
        eps,
        ACT=_act(slopes, slope),
        SKIP=skip is not None,
        **cut,
    )
    return out


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel over all frames, in float32.

    Shapes:  x [n, h, w, c] -> [c], [c]
    """
    *_, channels = expect("x", x, None, None, None, None)
    expect_batch("x", x)
    if takes_reference(x):
        return reference_statistics(x)
    from srgan_fast.kernels.batchnorm_act import kernel

    x = x.contiguous()
    grid, cut = _cut(x)
    parts = x.new_empty(grid[0], 2, channels, dtype=torch.float32)
    mean, variance = (x.new_empty(channels, dtype=torch.float32) for _ in range(2))
    pixels = x.numel() // channels
    kernel.statistics_pointer[grid](x, parts, pixels, **cut)
    launch.join_parts(kernel.join_parts_pointer, parts, pixels, cut["BP"], mean, variance)
    return mean, variance


def backward(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor,
    beta: Tensor,
    dy: Tensor,
    slopes: Tensor | None = None,
    slope: float = 1.0,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """The gradients, recomputed from x: of x, and as rows those of beta, gamma and, where there are any, slopes.

    That of skip is dy. A shared slope's gradient is the sum of its row.

    Shapes:  dy like x -> dx like x, [3, c] or without slopes [2, c]
    """
    n, h, w, channels = _shape(x, mean, variance, gamma, beta, slopes)
    expect("dy", dy, n, h, w, channels, dtype=x.dtype)
    expect_batch("x", x)
    if takes_reference(x):
        return reference_backward(x, mean, variance, gamma, beta, dy, slopes, slope, eps)
    from srgan_fast.kernels.batchnorm_act import kernel

    x, dy = x.contiguous(), dy.contiguous()
    grid, cut = _cut(x)
    given, act, pixels = _vectors(mean, variance, gamma, beta, slopes), _act(slopes, slope), n * h * w
    # Added up by torch in a fixed order: atomic additions would give other last bits each time.
    parts = x.new_empty(3 if slopes is not None else 2, grid[0], channels, dtype=torch.float32)
    kernel.gradient_parts_pointer[grid](x, *given, dy, parts, pixels, grid[0], slope, eps, ACT=act, **cut)
    sums = parts.sum(1)
    dx = torch.empty_like(x)
    kernel.gradient_pointer[grid](x, *given, dy, sums, dx, pixels, slope, eps, ACT=act, **cut)
    return dx, sums


def choose(processors: int, pixels: int, channels: int, itemsize: int) -> tuple[tuple[int, int], dict[str, int]]:
    """Grid and cut: blocks of 8 to 64 pixels by up to 64 channels, small enough to keep all multiprocessors busy."""
    columns = min(64, launch.power_of_two(channels))
    most = 64 if itemsize == 2 else 32
    across = -(-channels // columns)
    rows = most
    while rows > 8 and -(-pixels // rows) * across < 2 * processors:
        rows //= 2
    return (-(-pixels // rows), across), {"C": channels, "BP": rows, "BC": columns, "num_warps": 4}


def _cut(x: Tensor) -> tuple[tuple[int, int], dict[str, int]]:
    channels = x.shape[-1]
    return choose(launch.processors(x.device), x.numel() // channels, channels, x.element_size())


def _shape(
    x: Tensor, mean: Tensor, variance: Tensor, gamma: Tensor, beta: Tensor, slopes: Tensor | None
) -> tuple[int, int, int, int]:
    n, h, w, channels = expect("x", x, None, None, None, None)
    wide = torch.promote_types(x.dtype, torch.float32)
    for name, vector in (("mean", mean), ("variance", variance), ("gamma", gamma), ("beta", beta)):
        expect(name, vector, channels, dtype=wide)
    if slopes is not None:
        expect("slopes", slopes, 1 if slopes.shape == (1,) else channels, dtype=wide)
    return n, h, w, channels


def _vectors(mean: Tensor, variance: Tensor, gamma: Tensor, beta: Tensor, slopes: Tensor | None) -> list[Tensor]:
    return [v.contiguous() for v in (mean, variance, gamma, beta, beta if slopes is None else slopes)]


def _act(slopes: Tensor | None, slope: float) -> int:
    """How the activation is given, in the words of kernel.py."""
    if slopes is None:
        return 0 if slope == 1.0 else 1
    return 2 if slopes.shape == (1,) else 3


@torch.library.custom_op("srgan_fast::batchnorm_act", mutates_args=())
def batchnorm_act(
    x: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    slopes: torch.Tensor | None = None,
    skip: torch.Tensor | None = None,
    slope: float = 1.0,
    eps: float = 1e-5,
) -> torch.Tensor:
    """`run` as an operator with gradients; mean and variance are constants to autograd, their share is in that of x."""
    return run(x, mean, variance, gamma, beta, slopes, skip, slope, eps)


@batchnorm_act.register_fake
def _(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor,
    beta: Tensor,
    slopes: Tensor | None = None,
    skip: Tensor | None = None,
    slope: float = 1.0,
    eps: float = 1e-5,
) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("srgan_fast::batchnorm_act_backward", mutates_args=())
def _backward_op(
    x: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    dy: torch.Tensor,
    slopes: torch.Tensor | None,
    slope: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    return backward(x, mean, variance, gamma, beta, dy, slopes, slope, eps)


@_backward_op.register_fake
def _(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor,
    beta: Tensor,
    dy: Tensor,
    slopes: Tensor | None,
    slope: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    return dx, mean.new_empty(2 if slopes is None else 3, x.shape[-1])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, mean, variance, gamma, beta, slopes, skip, ctx.slope, ctx.eps = inputs
    ctx.skips = skip is not None
    ctx.save_for_backward(x, mean, variance, gamma, beta, slopes)


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, mean, variance, gamma, beta, slopes = ctx.saved_tensors
    dx, sums = _backward_op(x, mean, variance, gamma, beta, dy, slopes, ctx.slope, ctx.eps)
    dslopes = None if slopes is None else sums[2] if len(slopes) > 1 else sums[2].sum(0, keepdim=True)
    return dx, None, None, sums[1], sums[0], dslopes, dy if ctx.skips else None, None, None


batchnorm_act.register_autograd(_differentiate, setup_context=_save)


@torch.library.custom_op("srgan_fast::channel_statistics", mutates_args=())
def channel_statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`statistics` as an operator; x is given detached, for `batchnorm_act` has their share of its gradient."""
    return statistics(x)


@channel_statistics.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    mean, variance = (x.new_empty(x.shape[-1], dtype=torch.promote_types(x.dtype, torch.float32)) for _ in range(2))
    return mean, variance


def flops(x: Tensor, **_: object) -> int:
    """A subtraction, two products, a sum, a comparison and a product a value."""
    return 6 * x.numel()


def bytes_moved(x: Tensor, skip: Tensor | None = None, **_: object) -> int:
    """Bytes that must be read and written once."""
    return (2 if skip is None else 3) * x.numel() * x.element_size()
