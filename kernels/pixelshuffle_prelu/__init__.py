"""PixelShuffle by r and PReLU in one pass over NHWC maps, with gradients: the step after a sub-pixel convolution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from srgan_fast.kernels import launch, takes_reference
from srgan_fast.kernels.contract import expect, output_for
from srgan_fast.kernels.pixelshuffle_prelu.cases import BENCH_CASES, CASES
from srgan_fast.kernels.pixelshuffle_prelu.reference import pixelshuffle_prelu as reference
from srgan_fast.kernels.pixelshuffle_prelu.reference import pixelshuffle_prelu_backward as reference_backward

__all__ = [
    "BENCH_CASES",
    "CASES",
    "backward",
    "bytes_moved",
    "flops",
    "pixelshuffle_prelu",
    "reference",
    "reference_backward",
    "run",
]

_PIXELS = 64  # a program


def run(x: Tensor, slopes: Tensor, r: int = 2, *, out: Tensor | None = None) -> Tensor:
    """Shuffle and activate by the fastest implementation that the device has.

    Shapes:  x [n, h, w, c*r^2] in PixelShuffle's order, slopes [c], result [n, h*r, w*r, c]
    Dtypes:  x and result float16, bfloat16 or float32; slopes float32; computed in float32
    Raises:  ValueError for other shapes or dtypes
    """
    n, h, w, channels = _shape(x, slopes, r)
    out = output_for(x, out, n, h * r, w * r, channels)
    if takes_reference(x):
        return out.copy_(reference(x, slopes, r))
    from srgan_fast.kernels.pixelshuffle_prelu import kernel

    kernel.pixelshuffle_prelu_pointer[(-(-h * w * r * r // _PIXELS), n)](
        x.contiguous(), slopes.contiguous(), out, h, w, **_constants(channels, r)
    )
    return out


def backward(x: Tensor, slopes: Tensor, dy: Tensor, r: int = 2) -> tuple[Tensor, Tensor]:
    """The gradients with respect to x and the slopes, recomputed from x.

    Shapes:  dy [n, h*r, w*r, c] -> dx like x, dslopes [c]
    """
    n, h, w, channels = _shape(x, slopes, r)
    expect("dy", dy, n, h * r, w * r, channels)
    if takes_reference(x):
        return reference_backward(x, slopes, dy, r)
    from srgan_fast.kernels.pixelshuffle_prelu import kernel

    blocks = -(-h * w * r * r // _PIXELS)
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    # Added up by torch in a fixed order: atomic additions would give other last bits each time.
    parts = slopes.new_empty(n * blocks, channels, dtype=torch.float32)
    kernel.pixelshuffle_prelu_backward_pointer[(blocks, n)](
        x.contiguous(), slopes.contiguous(), dy.contiguous(), dx, parts, h, w, **_constants(channels, r)
    )
    return dx, parts.sum(0).to(slopes.dtype)


def _shape(x: Tensor, slopes: Tensor, r: int) -> tuple[int, int, int, int]:
    (channels,) = expect("slopes", slopes, None)
    n, h, w, _ = expect("x", x, None, None, None, channels * r * r)
    return n, h, w, channels


def _constants(channels: int, r: int) -> dict[str, int]:
    return {"C": channels, "R": r, "BP": _PIXELS, "BC": launch.power_of_two(channels), "num_warps": 4}


@torch.library.custom_op("srgan_fast::pixelshuffle_prelu", mutates_args=())
def pixelshuffle_prelu(x: torch.Tensor, slopes: torch.Tensor, r: int = 2) -> torch.Tensor:
    """`run` as an operator that autograd, torch.compile and torch.export see as one node."""
    return run(x, slopes, r)


@pixelshuffle_prelu.register_fake
def _(x: Tensor, slopes: Tensor, r: int = 2) -> Tensor:
    n, h, w, _channels = x.shape
    return x.new_empty(n, h * r, w * r, slopes.shape[0])


@torch.library.custom_op("srgan_fast::pixelshuffle_prelu_backward", mutates_args=())
def _backward_op(x: torch.Tensor, slopes: torch.Tensor, dy: torch.Tensor, r: int) -> tuple[torch.Tensor, torch.Tensor]:
    return backward(x, slopes, dy, r)


@_backward_op.register_fake
def _(x: Tensor, slopes: Tensor, dy: Tensor, r: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.contiguous_format), torch.empty_like(slopes)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    x, slopes, ctx.r = inputs
    ctx.save_for_backward(x, slopes)


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
    x, slopes = ctx.saved_tensors
    dx, dslopes = _backward_op(x, slopes, dy, ctx.r)
    return dx, dslopes, None


pixelshuffle_prelu.register_autograd(_differentiate, setup_context=_save)


def flops(x: Tensor, **_: object) -> int:
    """A comparison and a multiplication a value."""
    return 2 * x.numel()


def bytes_moved(x: Tensor, **_: object) -> int:
    """Bytes that must be read and written once."""
    return 2 * x.numel() * x.element_size()
