"""The network's first convolution: k x k from three colours, bias and PReLU, on frames or `frame_input`'s pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from srgan_fast.kernels import frame_input, hopper, launch, takes_reference
from srgan_fast.kernels.contract import expect, expect_pixels, output_for
from srgan_fast.kernels.head import sm90
from srgan_fast.kernels.head.cases import BENCH_CASES, CASES
from srgan_fast.kernels.head.reference import head as reference

__all__ = ["BENCH_CASES", "CASES", "bytes_moved", "flops", "head", "pack", "reference", "run"]


def pack(weight: Tensor) -> Tensor:
    """A weight [cout, 3, k, k] as the kernel reads it: [k, depth, cout].

    A row of the kernel is its k pixels of four channels one after another, filled up with zeros to a power of two.
    """
    cout, _, size, _ = weight.shape
    depth = max(16, launch.power_of_two(4 * size))
    packed = weight.new_zeros(size, depth, cout)
    colours = torch.nn.functional.pad(weight.permute(2, 3, 1, 0), (0, 0, 0, 1))  # [k, k, 4, cout]
    packed[:, : 4 * size] = colours.reshape(size, 4 * size, cout)
    return packed


def run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    slopes: Tensor,
    gain: Tensor | None = None,
    offset: Tensor | None = None,
    *,
    out: Tensor | None = None,
    scratch: Tensor | None = None,
    backwards: bool = False,
) -> Tensor:
    """Convolve NHWC frames by the fastest implementation that their device has.

    Frames as they come are given with `gain` and `offset`, and scaled here: frame * gain + offset, rounded to the
    weight's dtype. Four-channel pixels, which `frame_input` has made, are given without. Who calls again and again
    keeps `scratch`, memory for such pixels, into which some implementations put them first. `backwards` lets some start
    with the last tile, which the op before has written last: a matter of caches only.

    Shapes:  x [n, h, w, 4], or frames [n, h, w, 3] with gain and offset [3]; weight [k, depth, cout] (see `pack`),
             bias and slopes [cout], result [n, h, w, cout]
    Dtypes:  weight and result float16, bfloat16 or float32, both one; x in that too, or frames uint8, uint16 or
             floating-point; the vectors float32; sums float32
    Raises:  ValueError for other shapes or dtypes
    """
    if (gain is None) != (offset is None):
        raise ValueError("expected gain and offset together, got one of them; give both with frames of three colours")
    n, h, w, _ = expect("x", x, None, None, None, 4 if gain is None else 3, dtype=None if gain is None else x.dtype)
    size, depth, cout = expect("weight", weight, None, None, None, dtype=x.dtype if gain is None else None)
    if depth < 4 * size or depth & (depth - 1) or size % 2 == 0:
        raise ValueError(f"expected a weight that `pack` made, got shape {list(weight.shape)}")
    expect_pixels("x", x.dtype)
    for name, vector in (("gain", gain), ("offset", offset)):
        if vector is not None:
            expect(name, vector, 3, dtype=torch.float32)
    for name, vector in (("bias", bias), ("slopes", slopes)):
        expect(name, vector, cout, dtype=torch.float32)
    out = output_for(x, out, n, h, w, cout, dtype=weight.dtype)
    x, weight, bias, slopes = x.contiguous(), weight.contiguous(), bias.contiguous(), slopes.contiguous()
    gain = None if gain is None else gain.contiguous()
    offset = None if offset is None else offset.contiguous()

    def portable(out: Tensor) -> Tensor:
        if takes_reference(weight):
            return out.copy_(reference(x, weight, bias, slopes, gain, offset))
        if gain is None or offset is None:
            return _triton(x, weight, bias, slopes, out)
        # Scaled once a pixel, not once for each of the kernel's taps that look at it.
        pixels = frame_input.run(x, gain, offset, weight.dtype, out=scratch)
        return _triton(pixels, weight, bias, slopes, out)

    offer = sm90.offer(x, weight, bias, slopes, gain, offset, out, backwards=backwards)
    return out if hopper.take(offer, portable, out) else portable(out)


def _triton(x: Tensor, weight: Tensor, bias: Tensor, slopes: Tensor, out: Tensor) -> Tensor:
    from srgan_fast.kernels.head import kernel

    n, h, w, _ = x.shape
    size, depth, cout = weight.shape
    tiles = launch.tiles_for(x, cout)
    kernel.head_pointer[tiles.grid(n, h, w, tiles.blocks(cout))](
        x, weight, bias, slopes, out, h, w, COUT=cout, SIZE=size, BK=depth, **tiles.constants
    )
    return out


@torch.library.custom_op("srgan_fast::head", mutates_args=())
def head(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    slopes: torch.Tensor,
    gain: torch.Tensor | None = None,
    offset: torch.Tensor | None = None,
) -> torch.Tensor:
    """`run` as an operator that torch.compile and torch.export see as one node."""
    return run(x, weight, bias, slopes, gain, offset)


@head.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    slopes: Tensor,
    gain: Tensor | None = None,
    offset: Tensor | None = None,
) -> Tensor:
    return weight.new_empty(*x.shape[:-1], weight.shape[-1])


def flops(x: Tensor, weight: Tensor, **_: object) -> int:
    """Multiplications and additions of the convolution alone, of its three colours."""
    size, cout = weight.shape[0], weight.shape[-1]
    return 2 * x.shape[0] * x.shape[1] * x.shape[2] * size * size * 3 * cout


def bytes_moved(x: Tensor, weight: Tensor, **_: object) -> int:
    """Bytes that must be read and written once."""
    written = x.shape[0] * x.shape[1] * x.shape[2] * weight.shape[-1]
    return x.numel() * x.element_size() + (weight.numel() + written) * weight.element_size()
