"""pixelshuffle_prelu in Triton, forward and backward."""

import triton
import triton.language as tl


@triton.jit
def shuffled(p, W, C: tl.constexpr, R: tl.constexpr, channels):
    """Where the values of larger pixels p [BP] come from in a frame [h, w, c * r^2], offsets [BP, BC]."""
    y, x = p // (W * R), p % (W * R)
    place = (y // R) * W + x // R
    return (place * (C * R * R) + (y % R) * R + x % R)[:, None] + channels[None, :] * (R * R)


@triton.jit
def pixelshuffle_prelu_pointer(
    x_ptr, s_ptr, y_ptr, H, W, C: tl.constexpr, R: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr
):
    """grid (blocks of BP larger pixels, frames)."""
    frame = tl.program_id(1).to(tl.int64) * H * W * R * R
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    c = tl.arange(0, BC)
    kept = (p < H * W * R * R)[:, None] & (c < C)[None, :]
    v = tl.load(x_ptr + frame * C + shuffled(p, W, C, R, c), mask=kept, other=0.0).to(tl.float32)
    v = tl.where(v >= 0, v, v * tl.load(s_ptr + c, mask=c < C, other=0.0)[None, :])
    tl.store(y_ptr + frame * C + p[:, None] * C + c[None, :], v.to(y_ptr.dtype.element_ty), mask=kept)


@triton.jit
def pixelshuffle_prelu_backward_pointer(
    x_ptr, s_ptr, dy_ptr, dx_ptr, ds_ptr, H, W, C: tl.constexpr, R: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr
):
    """grid (blocks of BP larger pixels, frames); each program leaves its part of the slopes' gradient in ds_ptr."""
    frame = tl.program_id(1).to(tl.int64) * H * W * R * R
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    c = tl.arange(0, BC)
    kept = (p < H * W * R * R)[:, None] & (c < C)[None, :]
    source = shuffled(p, W, C, R, c)
    v = tl.load(x_ptr + frame * C + source, mask=kept, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + frame * C + p[:, None] * C + c[None, :], mask=kept, other=0.0).to(tl.float32)
    # PyTorch gives a value of exactly 0 the slope.
    dx = tl.where(v > 0, dy, dy * tl.load(s_ptr + c, mask=c < C, other=0.0)[None, :])
    tl.store(dx_ptr + frame * C + source, dx.to(dx_ptr.dtype.element_ty), mask=kept)
    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(ds_ptr + program * C + c, tl.sum(tl.where(v > 0, 0.0, dy * v), 0), mask=c < C)
