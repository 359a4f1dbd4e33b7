"""What the ops check of their arguments, in one place and in one voice."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from srgan_fast.kernels.launch import MOST_ELEMENTS

# The largest value of a pixel in an integer frame; floats go from 0 to 1.
LEVELS = {torch.uint8: 255, torch.uint16: 65535}

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def expect(name: str, tensor: Tensor, *shape: int | None, dtype: torch.dtype | None = None) -> tuple[int, ...]:
    """The shape of a tensor, if it is as expected; None in `shape` is any size from 1 up.

    Raises:  ValueError that says what was expected and what came
    """
    got = tuple(tensor.shape)
    fits = len(got) == len(shape) and all(g == s if s is not None else g > 0 for g, s in zip(got, shape, strict=True))
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"expected {name} of shape [{wanted}], got {list(got)}")
    if dtype is not None and tensor.dtype != dtype:
        raise ValueError(f"expected {name} in {dtype}, got {tensor.dtype}")
    if dtype is None and tensor.dtype not in _DTYPES:
        raise ValueError(f"expected {name} in a floating-point dtype, got {tensor.dtype}")
    return got


def expect_pixels(name: str, dtype: torch.dtype) -> None:
    """Refuse what is no dtype of pixels.

    Raises:  ValueError that says what was expected and what came
    """
    if dtype not in LEVELS and not dtype.is_floating_point:
        raise ValueError(f"expected {name} in uint8, uint16 or a floating-point dtype, got {dtype}")


def expect_batch(name: str, tensor: Tensor) -> None:
    """Refuse a batch beyond 32-bit offsets, for kernels that look at all of its frames as one.

    Raises:  ValueError that says what was expected and what came
    """
    if tensor.numel() > MOST_ELEMENTS:
        raise ValueError(
            f"expected {name} of at most {MOST_ELEMENTS} values in all, got {list(tensor.shape)}; take a smaller batch"
        )


def output_for(x: Tensor, out: Tensor | None, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """The memory of a result: `out` if it was given and fits, else new.

    Raises:  ValueError for an `out` that does not fit, or a frame beyond 32-bit offsets
    """
    if max(x[0].numel(), math.prod(shape[1:])) > MOST_ELEMENTS:
        raise ValueError(f"expected frames of at most {MOST_ELEMENTS} values, got {list(shape)}; cut them into tiles")
    if out is None:
        return x.new_empty(shape, dtype=dtype or x.dtype)
    if tuple(out.shape) != shape or out.dtype != (dtype or x.dtype) or not out.is_contiguous():
        raise ValueError(
            f"expected a contiguous out of shape {list(shape)} in {dtype or x.dtype},"
            f" got {list(out.shape)} in {out.dtype}, strides {list(out.stride())}"
        )
    return out
