"""Frames of other libraries as tensors without a copy, and results as what came in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from srgan_fast.errors import BackendUnavailable, ShapeError

Back = Callable[[Tensor], Any]


def borrowed(frames: object) -> tuple[Tensor, Back]:
    """Frames as a tensor on the memory that they lie in, and what makes of a tensor an object of their kind.

    Of an array library that follows the array API (as CuPy and JAX do) results are arrays of it. Of another object with
    `__dlpack__` or `__cuda_array_interface__` they are tensors, which offer both themselves.

    Raises:  ShapeError for what is none of these; BackendUnavailable for memory of a GPU that torch does not see
    """
    if isinstance(frames, Tensor):
        return frames, _as_it_is
    if isinstance(frames, np.ndarray):
        dtype = frames.dtype
        return _from_numpy(frames), lambda result: result.numpy().astype(dtype, copy=False)
    kind = type(frames).__name__
    if hasattr(frames, "__dlpack__"):
        try:
            tensor = from_dlpack(frames)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise ShapeError(f"cannot take {kind} by DLPack: {error}; hand it over as a numpy array") from error
        namespace = getattr(frames, "__array_namespace__", None)
        return tensor, _as_it_is if namespace is None else namespace().from_dlpack
    if hasattr(frames, "__cuda_array_interface__"):
        if not torch.cuda.is_available():
            raise BackendUnavailable(f"{kind} lies on a GPU, but torch sees none; hand it over as a numpy array")
        stream = frames.__cuda_array_interface__.get("stream")
        if stream is not None:
            # What fills the frames may still run, in the stream that they name.
            theirs = torch.cuda.ExternalStream(stream)  # type: ignore[no-untyped-call]
            torch.cuda.current_stream().wait_stream(theirs)
        return torch.as_tensor(frames, device="cuda"), _as_it_is
    raise ShapeError(
        f"expected a numpy array, a torch tensor or an object with __dlpack__ or __cuda_array_interface__, got {kind}"
    )


def _as_it_is(result: Tensor) -> Tensor:
    return result


def _from_numpy(frames: NDArray[Any]) -> Tensor:
    try:
        # A read-only array is copied, and so is one in the other order of bytes: torch has neither as tensors.
        return torch.from_numpy(np.require(frames, frames.dtype.newbyteorder("="), ["C", "W"]))
    except TypeError:
        raise ShapeError(f"expected uint8, uint16 or floating-point frames, got {frames.dtype}") from None
