"""The check that every backend but eager passes before its first frame: its pictures against eager's in float32.

Two small frames at once, odd, with edges, slopes and noise from black to white: what a fast path takes from the wrong
frame, leaves unwritten or rounds otherwise reaches the picture.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from srgan_fast.backends.eager import EagerBackend, quantise
from srgan_fast.errors import BackendUnavailable
from srgan_fast.kernels.parity import GATES, Agreement, agree
from srgan_fast.weights import Model, ModelInfo

# Odd, and larger than a tile of the kernels both ways, with pixels left over.
CHECK_SIZE = (21, 35)
# Of the pixels of one and the same arithmetic, how many may round the other way.
_OFF_SHARE = 0.02
# In levels, as a mean over a picture: cutting decimals off instead of rounding is 0.5, other arithmetic less than 0.02.
_MOST_BIAS = 0.1


class Disagrees(BackendUnavailable):
    """A backend runs, but its pictures are not eager's."""


class Checkable(Protocol):
    """What of a backend the check needs."""

    name: str
    precision: str
    info: ModelInfo
    device: torch.device

    def run(self, frames: Tensor, out: Tensor, band: int) -> None:
        """See `Backend.run`."""


def hold(backend: Checkable, model: Model, *, frames: Tensor | None = None, want: Tensor | None = None) -> Agreement:
    """Hold a backend against eager, in float32 and in uint8, by the gate of its precision.

    Shapes:  frames [n, h, w, 3]; those of `check_frames` unless given; `want` is eager's picture of them, made unless
             it is there already
    Dtypes:  frames in float32, on the levels of uint8
    Raises:  Disagrees with how it differs
    """
    frames = check_frames(*CHECK_SIZE) if frames is None else frames
    frames = frames.to(backend.device)
    outcome, said = compared(backend, frames, wanted(model, frames) if want is None else want)
    if said:
        raise Disagrees(refusal(backend.name, f"{backend.precision}: {said}"))
    return outcome


def refusal(name: str, said: str) -> str:
    """What a user reads about a backend that differs; `said` is how."""
    return (
        f"backend {name} disagrees with eager on this device ({said}); take eager, and report it:"
        " srgan-fast check --report"
    )


def wanted(model: Model, frames: Tensor) -> Tensor:
    """Eager's picture of float frames, in float32, on their device."""
    n, height, width, _ = frames.shape
    scale = model.info.scale
    want = torch.empty(n, height * scale, width * scale, 3, device=frames.device)
    EagerBackend(model, str(frames.device), "fp32").run(frames, want, band=height)
    return want


def compared(
    backend: Checkable, frames: Tensor, want: Tensor, *, one_arithmetic: bool = False
) -> tuple[Agreement, str]:
    """How a backend's picture of float frames agrees with `want`, and what is wrong with it, or an empty text.

    Its uint8 pixels are held against its floats. With `one_arithmetic` the two are the same up to the last rounding;
    otherwise each is as far from the truth as the gate allows, and only what does not round stands out.
    """
    # Unwritten values must not look like what was there before.
    got = torch.full_like(want, float("nan"))
    backend.run(frames, got, band=frames.shape[1])
    outcome = agree(got, want, backend.precision)
    if not outcome.passed:
        return outcome, str(outcome)
    pixels = torch.full_like(want, 77, dtype=torch.uint8)
    backend.run((frames * 255).round().to(torch.uint8), pixels, band=frames.shape[1])
    off = (pixels.int() - quantise(got, torch.uint8).int()).double()
    most, bias = float(off.abs().max()), float(off.mean())
    if one_arithmetic:
        right = most <= 1 and float((off != 0).double().mean()) <= _OFF_SHARE
    else:
        right = most <= 1 + int(2 * 255 * GATES[backend.precision].max_error) and abs(bias) <= _MOST_BIAS
    if not right:
        return (
            outcome,
            f"its uint8 pixels are not its floats rounded: {most:g} levels off at most, {bias:.2f} on average",
        )
    return outcome, ""


def check_frames(height: int, width: int) -> Tensor:
    """Two float frames with edges, slopes and noise, from black to white, on the levels of uint8."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    smooth = torch.stack([rows, columns, (rows * columns).sqrt()], -1)
    noise = torch.rand(2, height, width, 3, generator=generator)
    edges = ((rows * 5).floor() + (columns * 7).floor()).remainder(2)[..., None].expand(-1, -1, 3)
    both = torch.stack([0.5 * smooth + 0.25 * edges, 0.5 * (1 - smooth) + 0.25 * (1 - edges)]) + 0.25 * noise
    return (both.clamp(0, 1) * 255).round() / 255
