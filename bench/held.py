"""Each op by one implementation, held against its reference wherever the op has cases."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import torch

from srgan_fast.bench import kernel
from srgan_fast.bench.device import synchronise
from srgan_fast.bench.kernel import DTYPES
from srgan_fast.bench.table import Table
from srgan_fast.errors import ParityError
from srgan_fast.kernels import ON_HOPPER, hopper, only
from srgan_fast.kernels.cases import Arguments
from srgan_fast.kernels.parity import Op, check_case

Make = Callable[[], Arguments]
Shape = tuple[int, int, int]


def held(
    ops: Mapping[str, Op], device: str, implementation: str, shapes: Iterable[Shape] = ()
) -> tuple[dict[str, bool], list[str]]:
    """Whether each op holds on each case in each precision; prints how close, by op.

    `shapes` (height, width, frames) add the cases that are timed. Of sm90 what it leaves to Triton is not counted but
    listed, which is the second thing that is returned, and an op of which it takes nothing has failed.
    """
    by_sm90, where, shapes = implementation == "sm90", torch.device(device), list(shapes)
    precisions = dict(DTYPES)
    if by_sm90:
        ops = {name: op for name, op in ops.items() if name in ON_HOPPER}
        precisions = {name: dtype for name, dtype in DTYPES.items() if dtype in hopper.ELEMENT}
        every = [(op, dtype) for op in ops.values() for dtype in precisions.values()]
        compile_ahead(device, ((op, make) for op, dtype in every for *_, make in _cases(op, device, dtype, shapes)))
    outcomes: dict[str, bool] = {}
    left: list[str] = []
    rows = []
    for name, op in ops.items():
        taken = 0
        for precision, dtype in precisions.items():
            passed, closest = [], 0.0
            for case, floor, make in _cases(op, device, dtype, shapes):
                key = f"{name} {precision}: {case}"
                before = hopper.calls(where)
                try:
                    with only(implementation):
                        report = check_case(op, make(), dtype, floor)
                except Exception as error:  # whatever a kernel meets, the other cases are still of interest
                    print(f"{key}: {type(error).__name__}: {error}", flush=True)
                    good = False
                else:
                    if by_sm90 and hopper.calls(where) == before:
                        left.append(key)
                        continue
                    taken += 1
                    good = report.passed
                    closest = max(closest, report.max_error / max(report.max_allowed, 1e-30))
                    if not good:
                        print(f"{key}: {report}", flush=True)
                outcomes[key] = good
                passed.append(good)
            rows.append((f"{name} {precision}", f"{sum(passed)} of {len(passed)}", f"{closest:.0%}"))
        if by_sm90:
            outcomes[f"{name} runs by sm90"] = taken > 0
    title = f"ops by {implementation} against their references"
    print(Table(title, ("op", "cases passed", "error of allowed"), rows).text())
    return outcomes, left


def compile_ahead(device: str, calls: Iterable[tuple[Op, Make]]) -> None:
    """Compile what calls of ops would launch by sm90, many at a time: one by one takes longer than what follows."""

    def work() -> None:
        for op, make in calls:
            # What fails here fails again where it is counted.
            with suppress(Exception):
                op.run(**make())

    with only("sm90"), torch.inference_mode():
        hopper.prepare(torch.device(device), work)


def _cases(op: Any, device: str, dtype: Any, shapes: Iterable[Shape]) -> Iterator[tuple[str, float | None, Make]]:
    for case in op.CASES:
        yield case.name, case.floor, partial(case.inputs, device, dtype)
    for height, width, frames in shapes:
        for name, make in op.BENCH_CASES.items():
            yield f"{name}, {frames}x{height}x{width}", None, partial(make, height, width, frames, device, dtype)


def exercise(device: str, implementation: str) -> None:
    """What compute-sanitizer watches: each op once; by sm90 a few small shapes, as its checks of kernels are watched.

    Raises:  ParityError where Triton had to run in the place of sm90, and nothing was watched
    """
    from srgan_fast.bench import train_kernel

    with only(implementation):
        for name, op in kernel.all_ops().items():
            if implementation == "sm90":
                makers = op.BENCH_CASES.values() if name in ON_HOPPER else ()
                calls = [make(9, 19, 2, device, torch.float16) for make in makers]
            else:
                calls = [case.inputs(device, torch.float16) for case in op.CASES]
            for arguments in calls:
                op.run(**arguments)
        if implementation == "triton":
            train_kernel.exercise(device)
    synchronise(device)
    if implementation == "sm90" and (failures := hopper.failures(torch.device(device))):
        raise ParityError(failures[0])


if __name__ == "__main__":
    exercise(*sys.argv[1:])
