"""Values of any size as 8-bit integers of one step: q = clamp(rint(x * inverse), -127, 127), half to even.

`inverse` is 1 over the step; the product is one float32 operation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from srgan_fast.kernels import takes_reference
from srgan_fast.kernels.contract import expect, output_for
from srgan_fast.kernels.quantise_int8.cases import BENCH_CASES, CASES
from srgan_fast.kernels.quantise_int8.reference import LEVELS
from srgan_fast.kernels.quantise_int8.reference import quantise_int8 as reference

__all__ = ["BENCH_CASES", "CASES", "EXACT", "LEVELS", "bytes_moved", "flops", "quantise_int8", "reference", "run"]

EXACT = True  # held to the reference bit for bit

_VALUES = 1024  # a program


def run(x: Tensor, inverse: float, *, out: Tensor | None = None) -> Tensor:
    """Quantise NHWC maps by the fastest implementation that their device has.

    `inverse` is rounded to float32. What is not finite gives an int8 that is not defined.

    Shapes:  x and result [n, h, w, c]
    Dtypes:  x float16, bfloat16 or float32, computed in float32; result int8 within [-127, 127]
    Raises:  ValueError for other shapes or dtypes
    """
    shape = expect("x", x, None, None, None, None)
    out = output_for(x, out, *shape, dtype=torch.int8)
    if takes_reference(x):
        return out.copy_(reference(x, inverse))
    from srgan_fast.kernels.quantise_int8 import kernel

    values = x.numel()
    kernel.quantise_int8_pointer[(-(-values // _VALUES),)](
        x.contiguous(), out, inverse, values, BP=_VALUES, num_warps=4, enable_fp_fusion=False
    )
    return out


@torch.library.custom_op("srgan_fast::quantise_int8", mutates_args=())
def quantise_int8(x: torch.Tensor, inverse: float) -> torch.Tensor:
    """`run` as an operator that torch.compile and torch.export see as one node."""
    return run(x, inverse)


@quantise_int8.register_fake
def _(x: Tensor, inverse: float) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.int8)


def flops(x: Tensor, **_: object) -> int:
    """A multiplication a value."""
    return x.numel()


def bytes_moved(x: Tensor, **_: object) -> int:
    """Bytes that must be read and written once."""
    return x.numel() * (x.element_size() + 1)
