"""The one tolerance rule: how far a fast path may be from its reference.

With inputs rounded to the test dtype, `truth` is the reference in float64, `plain` the reference in the test dtype and
`fast` what is tested. A fast path may err twice as much as plain PyTorch does, and its RMS error is bounded by dtype.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# RMS error over RMS of the truth.
RMS_BOUND = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Report:
    """The outcome of one comparison; errors in the units of the tensors, `rms_error` relative."""

    passed: bool
    max_error: float
    max_allowed: float
    rms_error: float
    rms_allowed: float

    def __str__(self) -> str:
        word = "pass" if self.passed else "FAIL"
        return (
            f"{word}: max error {self.max_error:.2e} (allowed {self.max_allowed:.2e}),"
            f" RMS {self.rms_error:.2e} (allowed {self.rms_allowed:.2e})"
        )


def compare(fast: Tensor, plain: Tensor, truth: Tensor, dtype: torch.dtype, *, layers: int = 1) -> Report:
    """Hold `fast` against the rule; a value that is not finite where the truth is fails.

    `layers` is how many operations in a row round their results: one for an op, its depth for a network.

    Shapes:  all three alike
    Dtypes:  truth float64; `dtype` is the test dtype, whose resolution gives the floor
    """
    difference = (fast.double() - truth).abs()
    # Below one rounding of the largest value, "twice as much as PyTorch" would compare noise with noise.
    floor = layers * torch.finfo(dtype).eps * float(truth.abs().max())
    max_allowed = 2 * float((plain.double() - truth).abs().max()) + floor
    max_error = float(difference.max())
    rms = float(difference.square().mean().sqrt() / truth.square().mean().sqrt().clamp_min(1e-30))
    allowed = RMS_BOUND[dtype]
    passed = bool(torch.isfinite(fast).all()) and max_error <= max_allowed and rms <= allowed
    return Report(passed, max_error, max_allowed, rms, allowed)
