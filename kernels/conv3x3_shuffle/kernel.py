"""conv3x3_shuffle in Triton: each block of outputs is one sub-pixel, so the shuffle is where the tile is stored."""

import triton
import triton.language as tl

from srgan_fast.kernels.implicit_gemm import conv_tile, tile_pixels


@triton.jit
def conv3x3_shuffle_pointer(
    x_ptr,
    w_ptr,
    b_ptr,
    s_ptr,
    y_ptr,
    H,
    W,
    CIN: tl.constexpr,
    C: tl.constexpr,
    R: tl.constexpr,
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
    acc += tl.load(b_ptr + outputs, mask=channels < C, other=0.0)[None, :]
    acc = tl.where(acc >= 0, acc, acc * tl.load(s_ptr + channels, mask=channels < C, other=0.0)[None, :])
    y, x = rows * R + subpixel // R, columns * R + subpixel % R
    target = y_ptr + frame * R * R * C + (y * (W * R) + x)[:, None] * C + channels[None, :]
    tl.store(target, acc.to(y_ptr.dtype.element_ty), mask=valid[:, None] & (channels < C)[None, :])
