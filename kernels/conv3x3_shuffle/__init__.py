"""A sub-pixel stage in one pass: 3x3 convolution, PixelShuffle by r and PReLU, NHWC frames r times larger.

y = prelu(pixel_shuffle(conv(x) + bias)); the convolution's r^2 * channels maps are never written.
"""

from __future__ import annotations

import torch
from torch import Tensor

from srgan_fast.kernels import hopper, launch, takes_reference
from srgan_fast.kernels.contract import expect, output_for
from srgan_fast.kernels.conv3x3 import sm90
from srgan_fast.kernels.conv3x3_shuffle.cases import BENCH_CASES, CASES
from srgan_fast.kernels.conv3x3_shuffle.reference import conv3x3_shuffle as reference

__all__ = ["BENCH_CASES", "CASES", "bytes_moved", "conv3x3_shuffle", "flops", "pack", "reference", "run"]


def pack(weight: Tensor, bias: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Weight [r^2*c, cin, 3, 3] and bias [r^2*c] of PyTorch's order as the kernel reads them.

    Shapes:  -> weight [9, cin, r^2*c], bias [r^2*c], columns in the order (row, column, channel) of the sub-pixels
    """
    outputs, cin, _, _ = weight.shape
    channels = outputs // (r * r)
    columns = weight.reshape(channels, r * r, cin, 9).permute(3, 2, 1, 0).reshape(9, cin, outputs)
    return columns.contiguous(), bias.reshape(channels, r * r).t().reshape(-1).contiguous()


def run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    slopes: Tensor,
    r: int = 2,
    *,
    out: Tensor | None = None,
    backwards: bool = False,
) -> Tensor:
    """Enlarge NHWC frames by the fastest implementation that their device has; for `backwards` see `conv3x3`.

    Shapes:  x [n, h, w, cin], weight [9, cin, r^2*c] and bias [r^2*c] (see `pack`), slopes [c], result [n, h*r, w*r, c]
    Dtypes:  x, weight and result float16, bfloat16 or float32, all one; bias and slopes float32; sums float32
    Raises:  ValueError for other shapes or dtypes
    """
    n, h, w, cin = expect("x", x, None, None, None, None)
    (channels,) = expect("slopes", slopes, None, dtype=torch.float32)
    expect("weight", weight, 9, cin, r * r * channels, dtype=x.dtype)
    expect("bias", bias, r * r * channels, dtype=torch.float32)
    out = output_for(x, out, n, h * r, w * r, channels)
    x, weight, bias, slopes = x.contiguous(), weight.contiguous(), bias.contiguous(), slopes.contiguous()

    def portable(out: Tensor) -> Tensor:
        if takes_reference(x):
            return out.copy_(reference(x, weight, bias, slopes, r))
        return _triton(x, weight, bias, slopes, r, out)

    offer = sm90.offer("conv3x3_shuffle", x, weight, bias, slopes, None, out, r=r, backwards=backwards)
    return out if hopper.take(offer, portable, out) else portable(out)


def _triton(x: Tensor, weight: Tensor, bias: Tensor, slopes: Tensor, r: int, out: Tensor) -> Tensor:
    from srgan_fast.kernels.conv3x3_shuffle import kernel

    n, h, w, cin = x.shape
    (channels,) = slopes.shape
    tiles = launch.tiles_for(x, channels)
    kernel.conv3x3_shuffle_pointer[tiles.grid(n, h, w, r * r * tiles.blocks(channels))](
        x,
        weight,
        bias,
        slopes,
        out,
        h,
        w,
        CIN=cin,
        C=channels,
        R=r,
        BK=tiles.inputs,
        **tiles.constants,
    )
    return out


@torch.library.custom_op("srgan_fast::conv3x3_shuffle", mutates_args=())
def conv3x3_shuffle(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, slopes: torch.Tensor, r: int = 2
) -> torch.Tensor:
    """`run` as an operator that torch.compile and torch.export see as one node."""
    return run(x, weight, bias, slopes, r)


@conv3x3_shuffle.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, slopes: Tensor, r: int = 2) -> Tensor:
    n, h, w, _cin = x.shape
    return x.new_empty(n, h * r, w * r, slopes.shape[0])


def flops(x: Tensor, weight: Tensor, **_: object) -> int:
    """Multiplications and additions of the convolution alone."""
    return 2 * x.shape[0] * x.shape[1] * x.shape[2] * weight.numel()


def bytes_moved(x: Tensor, weight: Tensor, **_: object) -> int:
    """Bytes that must be read and written once."""
    written = x.shape[0] * x.shape[1] * x.shape[2] * weight.shape[-1]
    return (x.numel() + weight.numel() + written) * x.element_size()
