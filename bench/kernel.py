"""How fast each op is by each of its implementations and by what `run` chooses, and how far from its reference.

The reference is plain PyTorch. Where cuDNN has the convolution of an op, a row of its own has that alone, without bias,
PReLU, residual and shuffle, which it would need further passes for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch.nn import functional

from srgan_fast import kernels
from srgan_fast.bench import ceiling
from srgan_fast.bench.device import float32, is_cuda, peak_bytes, rest_bytes
from srgan_fast.bench.figures import timed_figures
from srgan_fast.bench.record import latency, record
from srgan_fast.bench.timer import calls_for, captured, interleave
from srgan_fast.kernels import hopper
from srgan_fast.kernels.parity import Op, Report, check_case

SIZES = ((64, 64), (480, 270), (960, 540))

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

# Calls in one captured graph.
_IN_A_GRAPH = 20

# Ops whose convolution cuDNN has too.
_BARE = ("conv3x3", "conv3x3_shuffle")

_log = logging.getLogger(__name__)


class TimedOp(Op, Protocol):
    """The module of an op, as `srgan_fast.kernels` promises it."""

    BENCH_CASES: Mapping[str, Callable[[int, int, int, str, torch.dtype], dict[str, Any]]]

    def flops(self, **arguments: Any) -> int:
        """Operations that the op asks for."""

    def bytes_moved(self, **arguments: Any) -> int:
        """Bytes that it has to read and write once."""


def all_ops() -> dict[str, TimedOp]:
    """Every op by its name."""
    ops: dict[str, Any] = {name: kernels.load(name) for name in kernels.OPS}
    return ops


def measure(
    ops: Mapping[str, TimedOp], height: int, width: int, runs: int, device: str, *, batch: int = 1
) -> list[dict[str, Any]]:
    """Time each op on the tensors that LR frames of this size give it, reference first: fp16 on a GPU, else fp32."""
    precision = "fp16" if is_cuda(device) else "fp32"
    found = []
    for name, op in ops.items():
        for case, make in op.BENCH_CASES.items():
            arguments = make(height, width, batch, device, DTYPES[precision])
            fields = {"case": case, "dtype": precision, "baseline": "reference", "baseline_dtype": precision}
            shape = {"n": batch, "h": height, "w": width}
            found += _measured(name, op, arguments, {**fields, "shape": shape}, runs, device)
    return found


@dataclass(frozen=True)
class _Side:
    """One way to do an op: the call, how far its result is from the reference, and who did the work."""

    run: Callable[[], object]
    report: Report
    chosen: str


def _measured(
    name: str, op: TimedOp, arguments: dict[str, Any], fields: dict[str, Any], runs: int, device: str
) -> list[dict[str, Any]]:
    sides = _sides(name, op, arguments, DTYPES[fields["dtype"]], device)
    with float32(device), torch.inference_mode():
        times = timed({impl: side.run for impl, side in sides.items()}, runs, device)
    clock = "CUDA events around replays of a graph of 20 calls" if is_cuda(device) else "wall"
    raw: list[dict[str, Any]] = [
        {
            "suite": "kernel",
            "impl": impl,
            **fields,
            "chosen": side.chosen,
            "device": torch.device(device).type,
            "latency_ms": latency(times.samples_ms[impl]),
            "timing": {"clock": clock, "calls": times.calls[impl], "l2": "not flushed"},
            "peak_bytes": times.peaks[impl],
            "flops": op.flops(**arguments),
            "bytes": op.bytes_moved(**arguments),
            "quality": quality(side.report),
        }
        for impl, side in sides.items()
    ]
    found = []
    for one in raw:
        passed = one["quality"]["gate"] == "pass"
        derived = timed_figures(one, raw, ceiling.measure(device)) if passed else {}
        found.append(record("kernel", name, **{key: v for key, v in one.items() if key != "suite"}, derived=derived))
    return found


@dataclass(frozen=True)
class Times:
    """What took turns: milliseconds a call, the calls of a sample, and the most bytes that are held, each by name."""

    samples_ms: dict[str, list[float]]
    calls: dict[str, int]
    peaks: dict[str, int | None]


def timed(sides: Mapping[str, Callable[[], object]], runs: int, device: str) -> Times:
    """Time calls in turns; on a GPU by events around replays of a graph of many calls, as one is soon done."""
    peaks = {impl: peak_bytes(run, device, rest_bytes(device)) for impl, run in sides.items()}
    inside = _IN_A_GRAPH if is_cuda(device) else 1
    ready = {impl: captured(run, inside) for impl, run in sides.items()} if is_cuda(device) else dict(sides)
    calls = {impl: calls_for(run, device) for impl, run in ready.items()}
    samples = interleave(ready, runs, device=device, calls=calls, events=is_cuda(device))
    return Times(
        {impl: [ms / inside for ms in values] for impl, values in samples.items()},
        {impl: count * inside for impl, count in calls.items()},
        peaks,
    )


def quality(report: Report) -> dict[str, Any]:
    """What a record says of how far a result is from its reference."""
    errors = {key: getattr(report, key) for key in ("max_error", "max_allowed", "rms_error", "rms_allowed")}
    return {"gate": "pass" if report.passed else "fail", **errors}


def _sides(name: str, op: TimedOp, arguments: dict[str, Any], dtype: torch.dtype, device: str) -> dict[str, _Side]:
    """The reference, each other implementation that takes this call here, what `run` chooses, and cuDNN."""
    where = torch.device(device)
    ways = [impl for impl, reason in kernels.implementations(name, where).items() if reason is None]
    ways.remove("reference")
    found = {}
    for impl in [*ways, "run"]:
        call = partial(op.run, **arguments) if impl == "run" else partial(_by, impl, op, arguments)
        before = hopper.calls(where)
        with kernels.only(impl) if impl != "run" else nullcontext():
            report = check_case(op, arguments, dtype)
        by_sm90 = hopper.calls(where) > before
        if impl == "sm90" and not by_sm90:
            _log.warning("%s: no row of sm90: %s", name, "; ".join(hopper.failures(where)) or "it does not cover this")
            continue
        others = [way for way in ways if way != "sm90"]
        found[impl] = _Side(call, report, "sm90" if by_sm90 else (others or ["reference"])[0])
    # The reference is held to the same rule, which it passes by definition: it is the measure.
    reference = _Side(partial(op.reference, **arguments), replace(found["run"].report, passed=True), "reference")
    return {"reference": reference, **found} | (
        {"cudnn": _bare(arguments)} if is_cuda(device) and name in _BARE else {}
    )


def _by(impl: str, op: TimedOp, arguments: dict[str, Any]) -> object:
    with kernels.only(impl):
        return op.run(**arguments)


def _bare(arguments: dict[str, Any]) -> _Side:
    """The convolution alone, by PyTorch as it is tuned: channels last, the library's choice by trial."""
    x, weight = arguments["x"], arguments["weight"]
    kernel = weight.view(3, 3, x.shape[-1], -1).permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
    call = partial(functional.conv2d, x.permute(0, 3, 1, 2), kernel, padding=1)
    alone = {"x": x, "weight": weight, "bias": torch.zeros(weight.shape[-1], device=x.device)}
    with torch.inference_mode():
        report = hopper.compare_by(kernels.load("conv3x3").reference, alone, call().permute(0, 2, 3, 1))
    return _Side(call, report, "cudnn")
