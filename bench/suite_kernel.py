"""pytest-benchmark: every op and its reference, on the tensors that frames of real sizes give it. `make bench`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from srgan_fast.bench import kernel
from srgan_fast.bench.device import float32, synchronise

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.float16 if DEVICE == "cuda" else torch.float32
SIZES = kernel.SIZES if DEVICE == "cuda" else ((64, 64),)
OPS = kernel.all_ops()


@pytest.mark.parametrize("impl", ["reference", "run"])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize(("op", "case"), [(name, case) for name, op in OPS.items() for case in op.BENCH_CASES])
def test_op(benchmark: Any, op: str, case: str, size: tuple[int, int], impl: str) -> None:
    """One call, the host's share in it included; `srgan-fast bench --suite kernel` times the device alone."""
    width, height = size
    arguments = OPS[op].BENCH_CASES[case](height, width, 1, DEVICE, DTYPE)
    call = getattr(OPS[op], impl)
    benchmark.group = f"{op} {case} {width}x{height}"

    def whole() -> None:
        call(**arguments)
        synchronise(DEVICE)

    with float32(DEVICE), torch.inference_mode():
        benchmark(whole)
