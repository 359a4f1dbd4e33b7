"""The network's first convolution: k x k from three colours, bias and PReLU, on the frames that `frame_input` made."""

from __future__ import annotations

import torch
from torch import Tensor

from srgan_fast.kernels import launch, why_not_triton
from srgan_fast.kernels.contract import expect, output_for
from srgan_fast.kernels.head.cases import BENCH_CASES, CASES
from srgan_fast.kernels.head.reference import head as reference

__all__ = ["BENCH_CASES", "CASES", "bytes_moved", "flops", "head", "pack", "reference", "run"]


def pack(weight: Tensor) -> Tensor:
    """A weight [cout, 3, k, k] as the kernel reads it: [k, depth, cout].

    A row of the kernel is its k pixels of four channels one after another, filled up with zeros to a power of two.
    """
    cout, _, size, _ = weight.shape
    depth = max(16, 1 << (4 * size - 1).bit_length())
    packed = weight.new_zeros(size, depth, cout)
    colours = torch.nn.functional.pad(weight.permute(2, 3, 1, 0), (0, 0, 0, 1))  # [k, k, 4, cout]
    packed[:, : 4 * size] = colours.reshape(size, 4 * size, cout)
    return packed


def run(x: Tensor, weight: Tensor, bias: Tensor, slopes: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Convolve four-channel NHWC frames by the fastest implementation that their device has.

    Shapes:  x [n, h, w, 4], weight [k, depth, cout] (see `pack`), bias and slopes [cout], result [n, h, w, cout]
    Dtypes:  x, weight and result float16, bfloat16 or float32, all one; bias and slopes float32; sums float32
    Raises:  ValueError for other shapes or dtypes
    """
    n, h, w, _ = expect("x", x, None, None, None, 4)
    size, depth, cout = expect("weight", weight, None, None, None, dtype=x.dtype)
    if depth < 4 * size or depth & (depth - 1) or size % 2 == 0:
        raise ValueError(f"expected a weight that `pack` made, got shape {list(weight.shape)}")
    for name, vector in (("bias", bias), ("slopes", slopes)):
        expect(name, vector, cout)
    out = output_for(x, out, n, h, w, cout)
    if x.dtype == torch.float64 or why_not_triton(x.device):
        return out.copy_(reference(x, weight, bias, slopes))
    from srgan_fast.kernels.head import kernel

    tiles = launch.tiles_for(x, cout)
    kernel.head_pointer[tiles.grid(n, h, w, tiles.blocks(cout))](
        x.contiguous(),
        weight.contiguous(),
        bias.contiguous(),
        slopes.contiguous(),
        out,
        h,
        w,
        COUT=cout,
        SIZE=size,
        BK=depth,
        **tiles.constants,
    )
    return out


@torch.library.custom_op("srgan_fast::head", mutates_args=())
def head(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, slopes: torch.Tensor) -> torch.Tensor:
    """`run` as an operator that torch.compile and torch.export see as one node."""
    return run(x, weight, bias, slopes)


@head.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, slopes: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[-1])


def flops(x: Tensor, weight: Tensor, **_: object) -> int:
    """Multiplications and additions of the convolution alone, of its three colours."""
    size, cout = weight.shape[0], weight.shape[-1]
    return 2 * x.shape[0] * x.shape[1] * x.shape[2] * size * size * 3 * cout


def bytes_moved(x: Tensor, weight: Tensor, **_: object) -> int:
    """Bytes that must be read and written once."""
    written = x.shape[0] * x.shape[1] * x.shape[2] * weight.shape[-1]
    return (x.numel() + weight.numel() + written) * x.element_size()
