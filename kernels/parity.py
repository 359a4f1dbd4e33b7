"""The one tolerance rule: how far a fast path may be from its reference.

With inputs rounded to the test dtype, `truth` is the reference in float64, `plain` the reference in the test dtype and
`fast` what is tested. A fast path may err twice as much as plain PyTorch does, plus a floor, and its RMS error is
bounded by dtype. Pure data movement has no tolerance at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from srgan_fast.kernels import load
from srgan_fast.kernels.cases import Arguments, in_double
from srgan_fast.kernels.contract import LEVELS

# RMS error over RMS of the truth.
RMS_BOUND = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Gate:
    """How near a whole network's picture must be to float32's, on the range [0, 1]."""

    max_error: float
    psnr_db: float


# By precision. float32 sums in another order only; one level in 255 is 0.0039.
GATES = {
    "fp32": Gate(0.1 / 255, 90.0),
    "fp16": Gate(3 / 255, 60.0),
    "bf16": Gate(12 / 255, 45.0),
    # Static scales clip what lies beyond them, which a few pixels show.
    "int8": Gate(24 / 255, 40.0),
}


@dataclass(frozen=True)
class Agreement:
    """Two pictures compared: whether the gate is passed, and by what figures; PSNR is infinite for equal ones."""

    passed: bool
    max_error: float
    psnr_db: float
    gate: Gate

    def __str__(self) -> str:
        word = "pass" if self.passed else "FAIL"
        return (
            f"{word}: max error {255 * self.max_error:.3f}/255 (allowed {255 * self.gate.max_error:g}/255),"
            f" {self.psnr_db:.1f} dB (at least {self.gate.psnr_db:g})"
        )


def agree(picture: Tensor, reference: Tensor, precision: str) -> Agreement:
    """Hold a fast network's picture against the gate of its precision; a value that is not finite fails.

    Shapes:  both alike
    Units:   both in [0, 1]
    Raises:  ValueError for pictures of different shapes, or empty ones; KeyError for an unknown precision
    """
    _alike(picture, reference)
    gate = GATES[precision]
    error = (picture.double() - reference.double()).abs()
    max_error, mse = float(error.max()), float(error.square().mean())
    psnr_db = -10 * math.log10(mse) if mse > 0 else math.inf
    finite = bool(torch.isfinite(picture).all() and torch.isfinite(reference).all())
    return Agreement(finite and max_error <= gate.max_error and psnr_db >= gate.psnr_db, max_error, psnr_db, gate)


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


def compare(fast: Tensor, plain: Tensor, truth: Tensor, dtype: torch.dtype, *, floor: float | None = None) -> Report:
    """Hold `fast` against the rule; a value that is not finite fails.

    `floor` is one rounding of the largest value unless given; who gives another says why beside the number.

    Shapes:  all three alike
    Dtypes:  truth float64; `dtype` is the test dtype, a key of RMS_BOUND
    Raises:  ValueError for tensors of different shapes, an empty one, or a truth that is not float64
    """
    _alike(fast, plain, truth)
    if truth.dtype != torch.float64:
        raise ValueError(f"expected the truth in float64, got {truth.dtype}; run the reference in double")
    if floor is None:
        # Below one rounding of the largest value, "twice as much as PyTorch" would compare noise with noise.
        floor = torch.finfo(dtype).eps * float(truth.abs().max())
    error = fast.double() - truth
    max_error = float(error.abs().max())
    max_allowed = 2 * float((plain.double() - truth).abs().max()) + floor
    rms_error = float(error.square().mean().sqrt() / truth.square().mean().sqrt().clamp_min(1e-30))
    rms_allowed = RMS_BOUND[dtype]
    # A NaN on any side makes its comparison false; only an infinite allowance would let an infinite error through.
    finite = bool(torch.isfinite(fast).all() and torch.isfinite(plain).all())
    passed = finite and max_error <= max_allowed and rms_error <= rms_allowed
    return Report(passed, max_error, max_allowed, rms_error, rms_allowed)


def compare_exact(fast: Tensor, truth: Tensor) -> Report:
    """Hold pure data movement, and what fixes each of its roundings, to that: equal bit for bit, in the same dtype.

    Shapes:  both alike
    Raises:  ValueError for tensors of different shapes or dtypes, or empty ones
    """
    _alike(fast, truth)
    if fast.dtype != truth.dtype:
        raise ValueError(f"expected one dtype, got {fast.dtype} and {truth.dtype}; it may not change")
    same = torch.equal(fast.contiguous().view(torch.uint8), truth.contiguous().view(torch.uint8))
    error = (fast.double() - truth.double()).abs()
    scale = truth.double().square().mean().sqrt().clamp_min(1e-30)
    return Report(same, float(error.max()), 0.0, float(error.square().mean().sqrt() / scale), 0.0)


def compare_pixels(pixels: Tensor, floats: Tensor) -> Report:
    """Hold integer pixels to what becomes of the same op's floats, bit for bit: floor(v * m + 0.5).

    Shapes:  both alike
    Dtypes:  pixels uint8 or uint16, floats float32
    Units:   floats in [0, 1]
    """
    levels = (floats * LEVELS[pixels.dtype] + 0.5).floor()
    return compare_exact(pixels, levels.to(torch.int32).to(pixels.dtype))


def _alike(*tensors: Tensor) -> None:
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if len(set(shapes)) != 1 or tensors[0].numel() == 0:
        raise ValueError(f"expected tensors of one shape with at least one value, got {shapes}")


@contextmanager
def exact_float32(device: torch.device | str) -> Iterator[None]:
    """float32 means float32: TF32 off for the time being, restored afterwards."""
    if torch.device(device).type != "cuda":
        yield
        return
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    saved = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = saved


class Op(Protocol):
    """What the package of an op has; see the package `kernels`.

    Two more are optional: `EXACT`, true where every implementation gives the reference's bits, and `RESULTS`, the names
    of arguments that `run` and `reference` write to: results like the first, or else sums over it. An exact op may
    return several results.
    """

    CASES: Any

    def run(self, **arguments: Any) -> Tensor | tuple[Tensor, ...]:
        """The fastest implementation that runs here."""

    def reference(self, **arguments: Any) -> Tensor | tuple[Tensor, ...]:
        """Plain PyTorch."""


def check_case(op: Op, arguments: Arguments, dtype: torch.dtype, floor: float | None = None) -> Report:
    """Hold `run` against `reference` on one set of arguments by the rule.

    Pixels are exactly what becomes of the op's own float result, and that keeps the rule: one value that falls off a
    rounding edge would make a rule on pixels either blind or wrong.
    """
    wanted = arguments.get("dtype")
    device = next(value.device for value in arguments.values() if isinstance(value, Tensor))
    with exact_float32(device), torch.inference_mode():
        if getattr(op, "EXACT", False):
            return _check_exact(op, arguments)
        if wanted in LEVELS:
            (pixels,), arguments = returned(op.run(**arguments)), {**arguments, "dtype": torch.float32}
            (floats,) = returned(op.run(**arguments))
            if not (exact := compare_pixels(pixels, floats)).passed:
                return exact
        ways = ((op.run, arguments), (op.reference, arguments), (op.reference, in_double(arguments)))
        fast, plain, truth = (all_results(op, call, given) for call, given in ways)
    return compare_all(fast, plain, truth, dtype, floor=floor)


def compare_all(
    fast: list[Tensor], plain: list[Tensor], truth: list[Tensor], dtype: torch.dtype, *, floor: float | None = None
) -> Report:
    """Hold a result, and then sums over it that were written besides: the first report that fails, or the result's."""
    reports = [compare(fast[0], plain[0], truth[0], dtype, floor=floor)]
    for sums in zip(fast[1:], plain[1:], truth[1:], strict=True):
        reports.append(compare(*sums, dtype, floor=sum_floor(sums[2], dtype)))
    return next((report for report in reports if not report.passed), reports[0])


def sum_floor(truth: Tensor, dtype: torch.dtype) -> float:
    """The floor for sums over all pixels: each is rounded at many additions, in another order on each side."""
    return 4 * torch.finfo(dtype).eps * float(truth.abs().max())


def returned(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What an op returns, one result or several."""
    return (result,) if isinstance(result, Tensor) else result


def all_results(op: Op, call: Callable[..., Tensor | tuple[Tensor, ...]], arguments: Arguments) -> list[Tensor]:
    """What a call of an op returns, and what it writes to its arguments, each in memory of its own."""
    also = [name for name in getattr(op, "RESULTS", ()) if arguments.get(name) is not None]
    written = {name: torch.full_like(arguments[name], float("nan")) for name in also}
    return [*returned(call(**arguments | written)), *written.values()]


def _check_exact(op: Op, arguments: Arguments) -> Report:
    """The first report that fails, or the last: of the results, and of the arguments that are results too."""
    also = [name for name in getattr(op, "RESULTS", ()) if arguments.get(name) is not None]
    mine, theirs = (arguments | {name: torch.full_like(arguments[name], fill) for name in also} for fill in (77, -77))
    found, wanted = returned(op.run(**mine)), returned(op.reference(**theirs))
    pairs = [*zip(found, wanted, strict=True), *((mine[name], theirs[name]) for name in also)]
    reports = [compare_exact(*pair) for pair in pairs]
    return next((report for report in reports if not report.passed), reports[-1])


def check_op(op: str, device: str, dtype: torch.dtype) -> list[tuple[str, Report]]:
    """Every case of an op on a device: its name, and how its fastest implementation compares with the reference."""
    package: Any = load(op)
    cases = package.CASES
    return [(case.name, check_case(package, case.inputs(device, dtype), dtype, case.floor)) for case in cases]
