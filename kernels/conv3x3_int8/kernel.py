"""conv3x3_int8 in Triton: each block of outputs is one sub-pixel, so the shuffle is where the tile is stored."""

import triton
import triton.language as tl

from srgan_fast.kernels.implicit_gemm import conv_tile, tile_pixels, to_int8


@triton.jit
def conv3x3_int8_pointer(
    x_ptr,
    w_ptr,
    g_ptr,
    b_ptr,
    s_ptr,
    r_ptr,
    y_ptr,
    q_ptr,
    inverse,
    H,
    W,
    CIN: tl.constexpr,
    C: tl.constexpr,
    R: tl.constexpr,
    PRELU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    QUANTISED: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """grid (tiles of a frame, sub-pixels by blocks of BN channels, frames)."""
    frame = tl.program_id(2).to(tl.int64) * H * W
    rows, columns, valid = tile_pixels(tl.program_id(0), H, W, TH, TW)
    blocks = tl.cdiv(C, BN)
    subpixel = tl.program_id(1) // blocks
    channels = (tl.program_id(1) % blocks) * BN + tl.arange(0, BN)
    # A block's last columns may reach into the next sub-pixel: computed, and not stored.
    outputs = subpixel * C + channels
    acc = conv_tile(x_ptr + frame * CIN, w_ptr, rows, columns, outputs, H, W, CIN, R * R * C, 3, 3, BK)
    v = acc.to(tl.float32) * tl.load(g_ptr + outputs, mask=channels < C, other=0.0)[None, :]
    v = v + tl.load(b_ptr + outputs, mask=channels < C, other=0.0)[None, :]
    if PRELU:
        v = tl.where(v >= 0, v, v * tl.load(s_ptr + channels, mask=channels < C, other=0.0)[None, :])
    y, x = rows * R + subpixel // R, columns * R + subpixel % R
    offsets = frame * (R * R * C) + ((y * (W * R) + x)[:, None] * C + channels[None, :])
    kept = valid[:, None] & (channels < C)[None, :]
    if RESIDUAL:
        v = v + tl.load(r_ptr + offsets, mask=kept, other=0.0).to(tl.float32)
    if y_ptr.dtype.element_ty == tl.int8:
        tl.store(y_ptr + offsets, to_int8(v), mask=kept)
    else:
        rounded = v.to(y_ptr.dtype.element_ty)
        tl.store(y_ptr + offsets, rounded, mask=kept)
        if QUANTISED:
            tl.store(q_ptr + offsets, to_int8(rounded.to(tl.float32) * inverse), mask=kept)
