"""Device code for batch statistics: mean and variance from parts of a batch, one part a program.

A part is its own mean and the sum of squared deviations from it. Sums of x and of x^2 would lose a variance that is
small beside the mean: E[x^2] - E[x]^2 cancels. What rounding has left of the sum of the deviations, which should be 0,
corrects both. Parts are joined in a fixed order, so the bits are the same each time.

Source:  Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979
"""

import triton
import triton.language as tl


@triton.jit
def store_part(v, kept, first, PIXELS, parts_ptr, channels, C: tl.constexpr):
    """Leave mean and squared deviations of v [BP, channels], of which those kept count, in parts_ptr [parts, 2, C].

    `first` is the first pixel of the program, whose number is the part's.
    """
    count = tl.minimum(PIXELS - first, v.shape[0]).to(tl.float32)
    mean = tl.sum(tl.where(kept, v, 0.0), 0) / count
    apart = tl.where(kept, v - mean[None, :], 0.0)
    left = tl.sum(apart, 0)
    part = parts_ptr + tl.program_id(0) * (2 * C) + channels
    tl.store(part, mean + left / count, mask=channels < C)
    tl.store(part + C, tl.sum(apart * apart, 0) - left * left / count, mask=channels < C)


@triton.jit
def join_parts_pointer(
    parts_ptr,
    mean_ptr,
    variance_ptr,
    PARTS,
    PIXELS,
    BP,
    C: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
):
    """grid (blocks of BC channels): mean and biased variance of PIXELS pixels from parts of BP pixels, BR at a time."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    total = tl.zeros((BC,), dtype=tl.float32)
    for first in range(0, PARTS, BR):
        i = first + tl.arange(0, BR)
        count = tl.minimum(PIXELS - i * BP, BP).to(tl.float32)[:, None]
        kept = (i < PARTS)[:, None] & (c < C)[None, :]
        mean = tl.load(parts_ptr + i[:, None] * (2 * C) + c[None, :], mask=kept, other=0.0)
        total += tl.sum(count * mean, 0)
    middle = total / PIXELS
    squares = tl.zeros((BC,), dtype=tl.float32)
    left = tl.zeros((BC,), dtype=tl.float32)
    for first in range(0, PARTS, BR):
        i = first + tl.arange(0, BR)
        count = tl.minimum(PIXELS - i * BP, BP).to(tl.float32)[:, None]
        kept = (i < PARTS)[:, None] & (c < C)[None, :]
        part = parts_ptr + i[:, None] * (2 * C) + c[None, :]
        apart = tl.where(kept, tl.load(part, mask=kept, other=0.0) - middle[None, :], 0.0)
        squares += tl.sum(tl.load(part + C, mask=kept, other=0.0) + count * apart * apart, 0)
        left += tl.sum(count * apart, 0)
    tl.store(mean_ptr + c, middle + left / PIXELS, mask=c < C)
    tl.store(variance_ptr + c, (squares - left * left / PIXELS) / PIXELS, mask=c < C)
