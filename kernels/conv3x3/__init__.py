"""A 3x3 convolution with bias, PReLU and residual in one pass over NHWC frames.

y = prelu(conv(x) + bias) + residual, zero padding of one pixel; slopes and residual are each optional, and `out` may
be the residual's own memory. Batch normalisation has been folded into weight and bias before.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from srgan_fast.kernels import hopper, launch, takes_reference
from srgan_fast.kernels.contract import expect, output_for
from srgan_fast.kernels.conv3x3 import sm90
from srgan_fast.kernels.conv3x3.cases import BENCH_CASES, CASES
from srgan_fast.kernels.conv3x3.reference import conv3x3 as reference

__all__ = ["BENCH_CASES", "CASES", "bytes_moved", "conv3x3", "flops", "pack", "reference", "run"]


def pack(weight: Tensor) -> Tensor:
    """A convolution's weight [cout, cin, kh, kw] as the kernels read it: [kh*kw, cin, cout]."""
    cout, cin, height, width = weight.shape
    return weight.permute(2, 3, 1, 0).reshape(height * width, cin, cout).contiguous()


def run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    slopes: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    out: Tensor | None = None,
    backwards: bool = False,
) -> Tensor:
    """Convolve NHWC frames by the fastest implementation that their device has.

    `backwards` lets some start with the last tile, which the op before has written last: a matter of caches only.

    Shapes:  x [n, h, w, cin], weight [9, cin, cout] (see `pack`), bias and slopes [cout],
             residual and result [n, h, w, cout]
    Dtypes:  x, weight, residual and result float16, bfloat16 or float32, all one; bias and slopes float32; sums float32
    Raises:  ValueError for other shapes or dtypes
    """
    n, h, w, cin = expect("x", x, None, None, None, None)
    cout = weight.shape[-1]
    expect("weight", weight, 9, cin, cout, dtype=x.dtype)
    for name, vector in (("bias", bias), ("slopes", slopes)):
        if vector is not None:
            expect(name, vector, cout, dtype=torch.float32)
    if residual is not None:
        expect("residual", residual, n, h, w, cout, dtype=x.dtype)
    out = output_for(x, out, n, h, w, cout)
    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
    slopes = None if slopes is None else slopes.contiguous()
    residual = None if residual is None else residual.contiguous()

    def portable(out: Tensor) -> Tensor:
        if takes_reference(x):
            return out.copy_(reference(x, weight, bias, slopes, residual))
        return _triton(x, weight, bias, slopes, residual, out)

    offer = sm90.offer("conv3x3", x, weight, bias, slopes, residual, out, backwards=backwards)
    return out if hopper.take(offer, portable, out) else portable(out)


def _triton(
    x: Tensor, weight: Tensor, bias: Tensor, slopes: Tensor | None, residual: Tensor | None, out: Tensor
) -> Tensor:
    from srgan_fast.kernels.conv3x3 import kernel

    n, h, w, cin = x.shape
    cout = weight.shape[-1]
    slopes_ = bias if slopes is None else slopes
    residual_ = x if residual is None else residual
    tiles = launch.tiles_for(x, cout)
    shape = {
        "CIN": cin,
        "COUT": cout,
        "PRELU": slopes is not None,
        "RESIDUAL": residual is not None,
        **tiles.constants,
    }
    grid = tiles.grid(n, h, w, tiles.blocks(cout))
    # A descriptor starts at a 16-byte word; a slice of a larger buffer may not.
    if tiles.descriptors and not any(memory.data_ptr() % 16 for memory in (x, weight, residual_, out)):
        from triton.tools.tensor_descriptor import TensorDescriptor

        window = [1, tiles.rows, tiles.columns]
        target = TensorDescriptor.from_tensor(out, [*window, tiles.outputs])
        total = math.prod(grid)
        programs = min(total, launch.processors(x.device))
        kernel.conv3x3_descriptor[(programs,)](
            TensorDescriptor.from_tensor(x, [*window, cin]),
            TensorDescriptor.from_tensor(weight.view(9 * cin, cout), [cin, tiles.outputs]),
            bias,
            slopes_,
            TensorDescriptor.from_tensor(residual_, [*window, tiles.outputs]) if residual is not None else target,
            target,
            total,
            -(-w // tiles.columns),
            grid[0],
            programs,
            **shape,
        )
    else:
        kernel.conv3x3_pointer[grid](x, weight, bias, slopes_, residual_, out, h, w, BK=tiles.inputs, **shape)
    return out


@torch.library.custom_op("srgan_fast::conv3x3", mutates_args=())
def conv3x3(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    slopes: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """`run` as an operator that torch.compile and torch.export see as one node."""
    return run(x, weight, bias, slopes, residual)


@conv3x3.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, slopes: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[-1])


def flops(x: Tensor, weight: Tensor, **_: object) -> int:
    """Multiplications and additions of the convolution alone."""
    return 2 * x.shape[0] * x.shape[1] * x.shape[2] * weight.numel()


def bytes_moved(x: Tensor, weight: Tensor, residual: Tensor | None = None, **_: object) -> int:
    """Bytes that must be read and written once: the floor for the memory's part of the time."""
    pixels = x.shape[0] * x.shape[1] * x.shape[2]
    written = pixels * weight.shape[-1]
    return (x.numel() + weight.numel() + written + (written if residual is not None else 0)) * x.element_size()
