"""GPU kernels, one folder an op, each beside its reference; and the rule by which they are held equal.

An op is a package with `reference.py` (plain PyTorch, any dtype), `kernel.py` (Triton), for some `sm90.cu` and, in
`sm90.py`, how it is launched, `cases.py` (what it is tested and timed with) and, in `__init__.py`, its contract, `run`,
which takes the fastest implementation that the device has, and the same as a `torch.library` operator.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType

import torch
from torch import Tensor

OPS = {
    name: f"srgan_fast.kernels.{name}"
    for name in (
        *("frame_input", "head", "conv3x3", "conv3x3_shuffle", "tail", "pixelshuffle_prelu"),
        *("conv3x3_int8", "quantise_int8"),
        *("training_crops", "conv3x3_stats", "batchnorm_act"),
        *("yuv_to_rgb", "rgb_to_yuv"),
    )
}

# The ops that have a hand-written kernel for Hopper beside the Triton one.
ON_HOPPER = ("head", "conv3x3", "conv3x3_int8", "conv3x3_shuffle", "tail")

# The oldest architecture whose tensor cores Triton's pointer kernels are compiled and tested for.
_OLDEST = 80


def load(op: str) -> ModuleType:
    """The package of an op.

    Raises:  KeyError for an unknown name
    """
    return importlib.import_module(OPS[op])


def interpreting() -> bool:
    """Whether Triton runs its kernels on the CPU, step by step: for tests, far too slow for use."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def why_not_triton(device: torch.device) -> tuple[str, str] | None:
    """Why the Triton kernels cannot run on a device and what would change that; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed", "pip install triton"
    if interpreting():
        return None
    if device.type != "cuda":
        return (
            f"the kernels need an NVIDIA GPU, and the device is {device}",
            "choose --device cuda on a machine with one",
        )
    if architecture(device) < _OLDEST:
        return f"sm_{architecture(device)} has no tensor cores that the kernels use", "take sm_80 (Ampere) or later"
    return None


# What `only` allows.
_only: ContextVar[str | None] = ContextVar("only", default=None)


@contextmanager
def only(implementation: str) -> Iterator[None]:
    """Let every op run by one implementation, sm90, triton or reference, wherever it exists and is right."""
    token = _only.set(implementation)
    try:
        yield
    finally:
        _only.reset(token)


def forced() -> str | None:
    """The implementation that `only` allows; None if the fastest runs."""
    return _only.get()


def takes_reference(x: Tensor) -> bool:
    """Whether an op on `x` is its reference: in float64, where Triton does not run, and where `only` says so."""
    return x.dtype == torch.float64 or forced() == "reference" or why_not_triton(x.device) is not None


def architecture(device: torch.device) -> int:
    """The compute capability of a GPU as in sm_90; that of the oldest supported one for the interpreter."""
    if device.type != "cuda":
        return _OLDEST
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def implementations(op: str, device: torch.device) -> dict[str, str | None]:
    """The implementations of an op, fastest first, each with the reason why it does not run on a device, or None.

    One that runs on a device may still leave some shapes to the next.
    """
    from srgan_fast.kernels import hopper

    if op not in OPS:
        raise KeyError(op)
    reasons = {"sm90": hopper.why_not(device)} if op in ON_HOPPER else {}
    reasons["triton"] = why_not_triton(device)
    return {**{name: reason[0] if reason else None for name, reason in reasons.items()}, "reference": None}
