"""frame_input in Triton."""

import triton
import triton.language as tl


@triton.jit
def frame_input_pointer(f_ptr, g_ptr, o_ptr, x_ptr, pixels, BP: tl.constexpr):
    """grid (blocks of BP pixels); three values a pixel in, four out."""
    p = tl.program_id(0).to(tl.int64) * BP + tl.arange(0, BP)
    c = tl.arange(0, 4)
    colour = (p < pixels)[:, None] & (c < 3)[None, :]
    v = tl.load(f_ptr + p[:, None] * 3 + c[None, :], mask=colour, other=0).to(tl.float32)
    gain = tl.load(g_ptr + c, mask=c < 3, other=0.0)[None, :]
    v = v * gain + tl.load(o_ptr + c, mask=c < 3, other=0.0)[None, :]
    tl.store(x_ptr + p[:, None] * 4 + c[None, :], v.to(x_ptr.dtype.element_ty), mask=(p < pixels)[:, None])
