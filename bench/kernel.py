"""How fast each op is by what its `run` chooses, against its plain PyTorch reference, and how far from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor

from srgan_fast.bench import ceiling
from srgan_fast.bench.device import float32, is_cuda, peak_bytes, rest_bytes, synchronise
from srgan_fast.bench.figures import timed_figures
from srgan_fast.bench.record import latency, record
from srgan_fast.bench.timer import calls_for, interleave
from srgan_fast.kernels.parity import Op, check_case

SIZES = ((64, 64), (480, 270), (960, 540))

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

# Calls in one captured graph: the host launches once for all of them, so that its own pace is not what is measured.
_IN_A_GRAPH = 20


class TimedOp(Op, Protocol):
    """The module of an op, as `srgan_fast.kernels` promises it."""

    BENCH_CASES: Mapping[str, Callable[[int, int, int, str, torch.dtype], dict[str, Any]]]

    def flops(self, **arguments: Any) -> int:
        """Operations that the op asks for."""

    def bytes_moved(self, **arguments: Any) -> int:
        """Bytes that it has to read and write once."""


def all_ops() -> dict[str, TimedOp]:
    """Every op by its name."""
    registry: Any = import_module("srgan_fast.kernels")
    return {name: registry.load(name) for name in registry.OPS}


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


def _measured(
    name: str, op: TimedOp, arguments: dict[str, Any], fields: dict[str, Any], runs: int, device: str
) -> list[dict[str, Any]]:
    report = check_case(op, arguments, DTYPES[fields["dtype"]])
    quality = {
        "gate": "pass" if report.passed else "fail",
        **{key: getattr(report, key) for key in ("max_error", "max_allowed", "rms_error", "rms_allowed")},
    }
    sides = {"reference": lambda: op.reference(**arguments), "run": lambda: op.run(**arguments)}
    with float32(device), torch.inference_mode():
        peaks = {impl: peak_bytes(run, device, rest_bytes(device)) for impl, run in sides.items()}
        timed = {impl: _captured(run) for impl, run in sides.items()} if is_cuda(device) else sides
        calls = {impl: calls_for(run, device) for impl, run in timed.items()}
        samples = interleave(timed, runs, device=device, calls=calls, events=is_cuda(device))
    inside = _IN_A_GRAPH if is_cuda(device) else 1
    clock = "CUDA events around replays of a graph of 20 calls" if is_cuda(device) else "wall"
    raw: list[dict[str, Any]] = [
        {
            "suite": "kernel",
            "impl": impl,
            **fields,
            "device": torch.device(device).type,
            "latency_ms": latency([ms / inside for ms in values]),
            "timing": {"clock": clock, "calls": calls[impl] * inside, "l2": "not flushed"},
            "peak_bytes": peaks[impl],
            "flops": op.flops(**arguments),
            "bytes": op.bytes_moved(**arguments),
            # The reference is held to the same rule, which it passes by definition: it is the measure.
            "quality": quality if impl == "run" else {**quality, "gate": "pass"},
        }
        for impl, values in samples.items()
    ]
    found = []
    for one in raw:
        passed = one["quality"]["gate"] == "pass"
        derived = timed_figures(one, raw, ceiling.measure(device)) if passed else {}
        found.append(record("kernel", name, **{key: v for key, v in one.items() if key != "suite"}, derived=derived))
    return found


def _captured(run: Callable[[], object]) -> Callable[[], object]:
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(_IN_A_GRAPH):
            run()
    graph.replay()
    synchronise("cuda")
    return graph.replay


def _device(arguments: dict[str, Any]) -> torch.device:
    return next(value.device for value in arguments.values() if isinstance(value, Tensor))
