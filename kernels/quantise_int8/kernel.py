"""quantise_int8 in Triton."""

import triton
import triton.language as tl

from srgan_fast.kernels.implicit_gemm import to_int8


@triton.jit
def quantise_int8_pointer(x_ptr, y_ptr, inverse, values, BP: tl.constexpr):
    """grid (blocks of BP values)."""
    p = tl.program_id(0).to(tl.int64) * BP + tl.arange(0, BP)
    v = tl.load(x_ptr + p, mask=p < values, other=0.0).to(tl.float32) * inverse
    tl.store(y_ptr + p, to_int8(v), mask=p < values)
