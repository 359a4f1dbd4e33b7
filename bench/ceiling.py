"""What a device can do at best, measured in the run whose figures are held against it: a matrix product, a copy."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from srgan_fast.bench.device import float32, is_cuda, synchronise
from srgan_fast.bench.figures import ceiling_figures
from srgan_fast.bench.record import latency, record
from srgan_fast.bench.timer import calls_for, interleave

_RUNS = 7
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@cache
def measure(device: str) -> tuple[dict[str, Any], ...]:
    """The two ceilings as records: fp16 on a GPU, fp32 on a CPU. Once a process; both belong into the file of a run.

    Units:  derived `tflops` of the product, `gb_per_s` of the copy, bytes read and written
    """
    dtype, precision = (torch.float16, "fp16") if is_cuda(device) else (torch.float32, "fp32")
    count = 1 << 29 if is_cuda(device) else 1 << 24
    random = torch.Generator(device).manual_seed(0)
    source = torch.randn(count, device=device, generator=random, dtype=dtype)
    target = torch.empty_like(source)
    copied = _timed(lambda: target.copy_(source), device)
    return (
        _product(device, dtype, precision),
        _record("copy", {"dtype": precision, "latency_ms": copied, "bytes": 2 * source.nbytes}),
    )


@cache
def product(device: str, precision: str) -> dict[str, Any]:
    """The ceiling of training steps in a precision, fp32 or bf16: the matrix product in that very one."""
    return _product(device, _DTYPES[precision], precision, serves="train")


def _product(device: str, dtype: torch.dtype, precision: str, **fields: str) -> dict[str, Any]:
    side = 8192 if is_cuda(device) else 1024
    # Zeros would run faster than pictures do: they switch fewer transistors.
    random = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(side, side, device=device, generator=random).to(dtype) for _ in range(2))
    result = torch.empty_like(a)
    times = _timed(lambda: torch.mm(a, b, out=result), device)
    return _record("matmul", {"dtype": precision, **fields, "latency_ms": times, "flops": 2 * side**3})


def _timed(run: Callable[[], object], device: str) -> dict[str, Any]:
    with float32(device), torch.inference_mode():
        for _ in range(3):
            run()
        synchronise(device)
        return latency(interleave({0: run}, _RUNS, device=device, calls={0: calls_for(run, device)})[0])


def _record(name: str, fields: dict[str, Any]) -> dict[str, Any]:
    return record("ceiling", name, **fields, derived=ceiling_figures(fields), quality={"gate": "pass"})
