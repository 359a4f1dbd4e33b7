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


@cache
def measure(device: str) -> tuple[dict[str, Any], ...]:
    """The two ceilings as records: fp16 on a GPU, fp32 on a CPU. Once a process; both belong into the file of a run.

    Units:  derived `tflops` of the product, `gb_per_s` of the copy, bytes read and written
    """
    cuda = is_cuda(device)
    dtype = torch.float16 if cuda else torch.float32
    side, count = (8192, 1 << 29) if cuda else (1024, 1 << 24)
    # Zeros would run faster than pictures do: they switch fewer transistors.
    random = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(side, side, device=device, generator=random).to(dtype) for _ in range(2))
    source = torch.randn(count, device=device, generator=random, dtype=dtype)
    product, target = torch.empty_like(a), torch.empty_like(source)
    work: dict[str, tuple[Callable[[], object], dict[str, int]]] = {
        "matmul": (lambda: torch.mm(a, b, out=product), {"flops": 2 * side**3}),
        "copy": (lambda: target.copy_(source), {"bytes": 2 * source.nbytes}),
    }
    found = []
    with float32(device), torch.inference_mode():
        for name, (run, amount) in work.items():
            for _ in range(3):
                run()
            synchronise(device)
            times = latency(interleave({name: run}, _RUNS, device=device, calls={name: calls_for(run, device)})[name])
            fields = {"dtype": "fp16" if cuda else "fp32", "latency_ms": times, **amount}
            derived = ceiling_figures(fields)
            found.append(record("ceiling", name, **fields, derived=derived, quality={"gate": "pass"}))
    return tuple(found)
