"""What a Hopper GPU gives at most to kernels like ours: products by wgmma, bytes out of the L2 cache, launches.

These bound a roofline from inside: a kernel of this project can be no faster than its products, its copies and the gaps
between launches allow, whatever a library's matrix product reaches.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from srgan_fast.bench.device import is_cuda, synchronise
from srgan_fast.bench.figures import ceiling_figures
from srgan_fast.bench.record import latency, record
from srgan_fast.bench.timer import calls_for, captured, interleave
from srgan_fast.errors import BackendUnavailable
from srgan_fast.kernels import hopper
from srgan_fast.kernels.nvrtc import Specialisation

_RUNS = 7
# N of the product: from where shared memory is the limit to the largest there is.
_WIDTHS = (64, 128, 240, 256)
# On an H100 a launch takes some milliseconds.
_ROUNDS, _LOADS = 1000, 2000
_WORKING_SETS_MIB = (8, 16, 24, 32, 40, 48, 64)
_LINKS = 50

_SOURCE = "rates/sm90.cu"
_PRODUCTS_A_ROUND, _CHANNELS = 36, 64
_BOX = (64, 10, 32)  # channels, columns, rows in 16 bits
_BOX_BYTES, _BOXES_AT_ONCE = 2 * 64 * 10 * 32, 5

# By dtype: the element in C++, products' depth, what sums are kept in.
_KINDS: dict[str, tuple[str, torch.dtype, int, torch.dtype]] = {
    "fp16": ("srgan_fast::Half", torch.float16, 16, torch.float32),
    "int8": ("signed char", torch.int8, 32, torch.int32),
}


@dataclass(frozen=True)
class _Rate:
    """One thing to be timed: what it does, by which formula it is counted, how to run it and how to see it was done."""

    name: str
    case: str
    dtype: str
    formula: str
    amount: dict[str, int]
    run: Callable[[], object]
    right: Callable[[], bool]


class _Products(ctypes.Structure):
    _fields_ = (
        ("operands", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
        ("rounds", ctypes.c_int),
        ("_", ctypes.c_uint8 * 4),
    )


class _Reads(ctypes.Structure):
    _fields_ = hopper.padded(
        ("boxes", hopper.Map),
        ("sums", ctypes.c_void_p),
        ("count", ctypes.c_int),
        ("loads", ctypes.c_int),
    )


class _Link(ctypes.Structure):
    _fields_ = (("count", ctypes.c_void_p),)


def measure(device: str) -> list[dict[str, Any]]:
    """The rates as records of the suite `rates`; each kernel's result is checked in the same run.

    Units:  derived `tflops` of products, `gb_per_s` read, `us_a_launch` of a chain; bytes read only
    Raises: BackendUnavailable where kernels for sm_90a do not run
    """
    where = torch.device(device)
    reason = hopper.why_not(where)
    if reason is not None:
        raise BackendUnavailable(f"expected a GPU that runs kernels for sm_90a: {reason[0]}; {reason[1]}")
    runtime = hopper.runtime_for(where)
    assert runtime is not None
    runtime.prepare([*(_product(kind, n) for kind in _KINDS for n in _WIDTHS), _plain("reads"), _plain("link")])
    found = []
    for rates in (_products(runtime), _reads(runtime), _links(runtime)):
        for rate in rates:
            passed = rate.right()
            for _ in range(3):
                rate.run()
            synchronise(device)
            calls = calls_for(rate.run, device)
            samples = interleave({0: rate.run}, _RUNS, device=device, calls={0: calls}, events=is_cuda(device))[0]
            fields = {"case": rate.case, "dtype": rate.dtype, "formula": rate.formula, **rate.amount}
            fields |= {"latency_ms": latency(samples), "timing": {"calls": calls}}
            derived = ceiling_figures(fields) if passed else {}
            quality = {"gate": "pass" if passed else "fail"}
            found.append(record("rates", rate.name, **fields, derived=derived, quality=quality))
    return found


def _product(kind: str, n: int) -> Specialisation:
    return Specialisation(_SOURCE, f"srgan_fast::products<{_KINDS[kind][0]}, {n}>")


def _plain(kernel: str) -> Specialisation:
    return Specialisation(_SOURCE, f"srgan_fast::{kernel}")


def _products(runtime: hopper.Runtime) -> Iterator[_Rate]:
    blocks = runtime.processors
    random = torch.Generator().manual_seed(0)
    for kind, (_, dtype, depth, sum_dtype) in _KINDS.items():
        for n in _WIDTHS:
            rows = 64 + 2 * n
            # Random numbers: zeros switch fewer transistors, and a GPU at its limit of power is then faster.
            values = torch.randn(rows, _CHANNELS, generator=random) * (1.0 if dtype.is_floating_point else 40.0)
            operands = values.clamp(-127, 127).to(dtype).to(runtime.device)
            sums = torch.empty(blocks, 2, 64, n, dtype=sum_dtype, device=runtime.device)
            kernel = runtime.kernel(_product(kind, n), 1024 + rows * _CHANNELS * dtype.itemsize)

            def run(rounds: int, kernel: Any = kernel, operands: Tensor = operands, sums: Tensor = sums) -> None:
                parameters = _Products(operands.data_ptr(), sums.data_ptr(), rounds)
                runtime.launch(kernel, (blocks, 1, 1), 256, parameters, what="products")

            def right(run: Any = run, operands: Tensor = operands, sums: Tensor = sums, depth: int = depth) -> bool:
                sums.fill_(-1)
                run(1)
                a, b = operands[:64].double(), operands[64:].double().view(2, -1, _CHANNELS)
                want = _PRODUCTS_A_ROUND // (_CHANNELS // depth) * torch.einsum("mk,gnk->gmn", a, b)
                allowed = 1e-3 * want.abs().max() if sums.is_floating_point() else 0
                return bool(((sums.double() - want).abs() <= allowed).all())

            flops = 2 * 64 * n * depth * _PRODUCTS_A_ROUND * _ROUNDS * 2 * blocks
            formula = f"2 * 64 * N * {depth} a product, {_PRODUCTS_A_ROUND} * {_ROUNDS} products a warpgroup, 2 a block"
            yield _Rate(
                "products",
                f"m64n{n}k{depth}",
                kind,
                f"{formula}, {blocks} blocks",
                {"flops": flops},
                lambda run=run: run(_ROUNDS),  # type: ignore[misc]
                right,
            )


def _reads(runtime: hopper.Runtime) -> Iterator[_Rate]:
    blocks = runtime.processors
    random = torch.Generator().manual_seed(0)
    sums = torch.empty(blocks, dtype=torch.int32, device=runtime.device)
    kernel = runtime.kernel(_plain("reads"), 1024 + _BOXES_AT_ONCE * (_BOX_BYTES + 8))
    for size_mib in _WORKING_SETS_MIB:
        count = (size_mib << 20) // _BOX_BYTES
        values = torch.randint(-(1 << 31), 1 << 31, (count, _BOX_BYTES // 4), generator=random, dtype=torch.int64)
        boxes = values.to(torch.int32).to(runtime.device)
        sizes, box = (*_BOX, count), (*_BOX, 1)
        map_ = hopper.dense_map(runtime, boxes.view(torch.float16), sizes, box, 128)
        parameters = _Reads(boxes=map_, sums=sums.data_ptr(), count=count, loads=_LOADS)

        # The map holds the address of the boxes only, so the function keeps them.
        def run(parameters: _Reads = parameters, boxes: Tensor = boxes) -> None:
            runtime.launch(kernel, (blocks, 1, 1), 32, parameters, what="reads")

        def right(run: Any = run, boxes: Tensor = boxes, count: int = count) -> bool:
            sums.fill_(0)
            run()
            first = boxes[:, 0].long()
            loads = torch.arange(_LOADS, device=runtime.device)[:, None] * blocks
            taken = (loads + torch.arange(blocks, device=runtime.device)) % count
            return bool(((first[taken].sum(0) - sums.long()) % (1 << 32) == 0).all())

        yield _Rate(
            "l2_reads",
            f"working set {size_mib} MiB",
            "fp16",
            f"{_BOX_BYTES} bytes a box, {_LOADS} boxes a block, {blocks} blocks",
            {"bytes": _BOX_BYTES * _LOADS * blocks, "working_set_bytes": count * _BOX_BYTES},
            run,
            right,
        )


def _links(runtime: hopper.Runtime) -> Iterator[_Rate]:
    """Chains with the shape of a convolution's launch: every multiprocessor has one block, and no room for a second."""
    count = torch.zeros(1, dtype=torch.int32, device=runtime.device)
    kernel = runtime.kernel(_plain("link"), hopper.SHARED_LIMIT_BYTES)
    grid = (runtime.processors, 1, 1)
    for overlap in (True, False):

        def link(overlap: bool = overlap) -> None:
            runtime.launch(kernel, grid, hopper.THREADS, _Link(count.data_ptr()), what="link", overlap=overlap)

        def chain(link: Callable[[], None] = link) -> None:
            for _ in range(_LINKS):
                link()

        run: Callable[[], object] = captured(link, _LINKS) if runtime.device.type == "cuda" else chain

        def right(run: Callable[[], object] = run) -> bool:
            count.zero_()
            run()
            return int(count) == _LINKS

        yield _Rate(
            "launches",
            "overlapping (programmatic stream serialization)" if overlap else "one after another",
            "none",
            f"{_LINKS} kernels in a CUDA graph",
            {"launches": _LINKS},
            run,
            right,
        )
