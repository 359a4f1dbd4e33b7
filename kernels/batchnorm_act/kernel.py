"""batchnorm_act in Triton: statistics of a batch, normalise and activate, and the gradients in two passes."""

import triton
import triton.language as tl

from srgan_fast.kernels.moments import join_parts_pointer as join_parts_pointer
from srgan_fast.kernels.moments import store_part

# How the activation is given.
NONE = tl.constexpr(0)
CONSTANT = tl.constexpr(1)
SHARED = tl.constexpr(2)
CHANNEL = tl.constexpr(3)


@triton.jit
def place(PIXELS, C: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr):
    """Channels [BC] of a program, and offsets and validity of its values, each [BP, BC]."""
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    return c, p[:, None] * C + c[None, :], (p < PIXELS)[:, None] & (c < C)[None, :]


@triton.jit
def normalised(x_ptr, mean_ptr, variance_ptr, g_ptr, b_ptr, offsets, kept, c, eps, C: tl.constexpr):
    """(x - mean) / sigma, that with gain and shift, and gain / sigma by channel."""
    v = tl.load(x_ptr + offsets, mask=kept, other=0.0).to(tl.float32)
    inverse = 1.0 / tl.sqrt_rn(tl.load(variance_ptr + c, mask=c < C, other=1.0) + eps)
    gain = tl.load(g_ptr + c, mask=c < C, other=0.0)
    unit = (v - tl.load(mean_ptr + c, mask=c < C, other=0.0)[None, :]) * inverse[None, :]
    z = unit * gain[None, :] + tl.load(b_ptr + c, mask=c < C, other=0.0)[None, :]
    return unit, z, gain * inverse


@triton.jit
def slopes_of(s_ptr, slope, c, C: tl.constexpr, ACT: tl.constexpr):
    """What negative values of each channel are multiplied by, [BC]."""
    slopes = tl.zeros_like(c).to(tl.float32) + slope
    if ACT == SHARED:
        slopes = tl.zeros_like(c).to(tl.float32) + tl.load(s_ptr)
    if ACT == CHANNEL:
        slopes = tl.load(s_ptr + c, mask=c < C, other=0.0)
    return slopes


@triton.jit
def statistics_pointer(x_ptr, parts_ptr, PIXELS, C: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr):
    """grid (blocks of BP pixels, blocks of BC channels)."""
    c, offsets, kept = place(PIXELS, C, BP, BC)
    v = tl.load(x_ptr + offsets, mask=kept, other=0.0).to(tl.float32)
    store_part(v, kept, tl.program_id(0) * BP, PIXELS, parts_ptr, c, C)


@triton.jit
def batchnorm_act_pointer(
    x_ptr,
    mean_ptr,
    variance_ptr,
    g_ptr,
    b_ptr,
    s_ptr,
    r_ptr,
    y_ptr,
    PIXELS,
    slope,
    eps,
    C: tl.constexpr,
    ACT: tl.constexpr,
    SKIP: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
):
    """grid (blocks of BP pixels, blocks of BC channels)."""
    c, offsets, kept = place(PIXELS, C, BP, BC)
    _, z, _ = normalised(x_ptr, mean_ptr, variance_ptr, g_ptr, b_ptr, offsets, kept, c, eps, C)
    if ACT != NONE:
        z = tl.where(z >= 0, z, z * slopes_of(s_ptr, slope, c, C, ACT)[None, :])
    if SKIP:
        z += tl.load(r_ptr + offsets, mask=kept, other=0.0).to(tl.float32)
    tl.store(y_ptr + offsets, z.to(y_ptr.dtype.element_ty), mask=kept)


@triton.jit
def gradient_parts_pointer(
    x_ptr,
    mean_ptr,
    variance_ptr,
    g_ptr,
    b_ptr,
    s_ptr,
    dy_ptr,
    parts_ptr,
    PIXELS,
    PARTS,
    slope,
    eps,
    C: tl.constexpr,
    ACT: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
):
    """grid as above; each program leaves its parts of the gradients of shift, gain and slopes in parts_ptr."""
    c, offsets, kept = place(PIXELS, C, BP, BC)
    unit, z, _ = normalised(x_ptr, mean_ptr, variance_ptr, g_ptr, b_ptr, offsets, kept, c, eps, C)
    dy = tl.load(dy_ptr + offsets, mask=kept, other=0.0).to(tl.float32)
    dz = dy
    part = parts_ptr + tl.program_id(0) * C + c
    if ACT != NONE:
        # PyTorch gives a value of exactly 0 the slope.
        dz = tl.where(z > 0, dy, dy * slopes_of(s_ptr, slope, c, C, ACT)[None, :])
    if ACT >= SHARED:
        tl.store(part + 2 * PARTS * C, tl.sum(tl.where(z > 0, 0.0, dy * z), 0), mask=c < C)
    tl.store(part, tl.sum(dz, 0), mask=c < C)
    tl.store(part + PARTS * C, tl.sum(dz * unit, 0), mask=c < C)


@triton.jit
def gradient_pointer(
    x_ptr,
    mean_ptr,
    variance_ptr,
    g_ptr,
    b_ptr,
    s_ptr,
    dy_ptr,
    sums_ptr,
    dx_ptr,
    PIXELS,
    slope,
    eps,
    C: tl.constexpr,
    ACT: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
):
    """grid as above; the gradient of x, with what it changes in mean and variance, from the sums over all pixels."""
    c, offsets, kept = place(PIXELS, C, BP, BC)
    unit, z, gain = normalised(x_ptr, mean_ptr, variance_ptr, g_ptr, b_ptr, offsets, kept, c, eps, C)
    dz = tl.load(dy_ptr + offsets, mask=kept, other=0.0).to(tl.float32)
    if ACT != NONE:
        dz = tl.where(z > 0, dz, dz * slopes_of(s_ptr, slope, c, C, ACT)[None, :])
    mean_dz = tl.load(sums_ptr + c, mask=c < C, other=0.0) / PIXELS
    mean_unit = tl.load(sums_ptr + C + c, mask=c < C, other=0.0) / PIXELS
    dx = gain[None, :] * (dz - mean_dz[None, :] - unit * mean_unit[None, :])
    tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask=kept)
