"""Kernels for sm_90a on a CPU: the shipped .cu files, compiled with g++ against the headers in tests/emulator."""

from __future__ import annotations

import ctypes
import itertools
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT

from srgan_fast.kernels.nvrtc import Specialisation

KERNELS = ROOT / "kernels"
EMULATOR = Path(__file__).resolve().with_name("emulator")
COMPILER = shutil.which("g++") if sys.platform == "linux" else None
NO_COMPILER = "the emulator needs g++ on Linux; install it (Debian: apt install g++)"

SHARED_LIMIT_BYTES = 232448
MODELS = ("address", "row", "address-sbo1024")  # how the hardware reads swizzled operands; see machine.hpp

_FLAGS = (
    "-std=c++17",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-gnu-unique",
    "-ffp-contract=off",
    "-U_FORTIFY_SOURCE",
    "-w",
)
_MARK = 0xA5  # of a tensor map

# What the library of one specialisation exports. The kernel's parameter is a copy, as on the hardware.
_LAUNCHER = """\
#include "{file}"

template <class P>
static constexpr unsigned bytes_of(void (*)(P)) {{ return sizeof(P); }}

template <class P>
static void call(void (*kernel)(P), const void* parameters) {{ kernel(*static_cast<const P*>(parameters)); }}

extern "C" __attribute__((visibility("default"))) unsigned parameter_bytes() {{ return bytes_of({expression}); }}

extern "C" __attribute__((visibility("default"))) const char* launch(
    const void* parameters, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned shared_bytes, unsigned model,
    unsigned long long seed, const uint64_t* fresh, unsigned fresh_count) {{
  machine::Launch launch = {{
      [](const void* p) {{ call({expression}, p); }}, parameters, {{x, y, z}}, threads, shared_bytes, model, seed,
      fresh, fresh_count}};
  return machine::run(launch);
}}
"""


class Fault(Exception):
    """What the emulator found wrong with a kernel, its launch or its tensor maps."""


@dataclass(frozen=True)
class _Kernel:
    library: ctypes.CDLL
    expression: str
    shared_bytes: int


def some_always(faults: Iterable[Any]) -> list[Any]:
    """Every fourth planted fault, for a parameter of a test; the others with the long tests, since each is compiled."""
    marks = itertools.cycle([(), *[pytest.mark.slow] * 3])
    return [pytest.param(*(fault if isinstance(fault, tuple) else (fault,)), marks=next(marks)) for fault in faults]


def assert_planted(file: str, shipped: str) -> None:
    """Whoever changes what a long test alone alters learns it at once."""
    assert (KERNELS / file).read_text(encoding="utf-8").count(shipped) == 1, f"{file}: {shipped!r}"


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="srgan-fast-emulator-")


def _compile(*arguments: str) -> None:
    assert COMPILER, NO_COMPILER
    result = subprocess.run((COMPILER, *arguments), capture_output=True, text=True)
    if result.returncode:
        raise Fault(f"g++ {arguments[-1]}:\n{result.stderr[:4000]}")


@cache
def _machine() -> str:
    made = Path(_folder().name, "machine.o")
    _compile("-O3", *_FLAGS, "-o", str(made), "-c", str(EMULATOR / "machine.cpp"))
    return str(made)


@cache
def _sources(mutations: tuple[tuple[str, str, str], ...]) -> Path:
    """A copy of the kernels' sources with replacements of text, and without the headers that the emulator has instead.

    Left where they are, those would come first for the headers beside them.
    """
    folder = Path(tempfile.mkdtemp(dir=_folder().name))
    for path in KERNELS.rglob("*.cu*"):
        if (EMULATOR / path.name).exists():
            continue
        copied = folder / path.relative_to(KERNELS)
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    for name, old, new in mutations:
        text = (folder / name).read_text(encoding="utf-8")
        if text.count(old) != 1:
            raise Fault(f"mutation of {name}: {old!r} occurs {text.count(old)} times; it must occur once")
        (folder / name).write_text(text.replace(old, new), encoding="utf-8")
    return folder


@cache
def _library(file: str, expression: str, mutations: tuple[tuple[str, str, str], ...]) -> ctypes.CDLL:
    sources = _sources(mutations)
    folder = Path(tempfile.mkdtemp(dir=_folder().name))
    (folder / "kernel.cpp").write_text(_LAUNCHER.format(file=sources / file, expression=expression), encoding="utf-8")
    made = folder / "kernel.so"
    paths = (f"-I{EMULATOR}", f"-I{sources / 'include'}", "-include", "cuda.cuh")
    _compile(
        "-O1", *_FLAGS, *paths, "-shared", "-Wl,-Bsymbolic", "-o", str(made), _machine(), str(folder / "kernel.cpp")
    )
    library = ctypes.CDLL(str(made))
    library.launch.restype = ctypes.c_char_p
    library.launch.argtypes = (
        ctypes.c_void_p,
        *(ctypes.c_uint,) * 6,
        ctypes.c_ulonglong,
        ctypes.c_void_p,
        ctypes.c_uint,
    )
    return library


class Emulated:
    """A runtime (see srgan_fast.kernels.hopper.Runtime) for CPU tensors.

    processors:  multiprocessors that it claims to have
    seed:        of the times at which threads, copies and products go on; each launch takes the next one
    model:       how the hardware reads swizzled operands, one of MODELS
    fresh:       an attribute: tensors that count as written by the kernel that ran just before
    mutations:   {file under kernels/: (old text, new text) or several of them}; each must occur once
    """

    device = torch.device("cpu")

    def __init__(
        self,
        processors: int = 2,
        seed: int = 0,
        model: str = "address",
        mutations: Mapping[str, tuple[str, str] | Sequence[tuple[str, str]]] | None = None,
    ) -> None:
        self.processors, self.seed, self.model = processors, seed, MODELS.index(model)
        self.launches = 0
        self.fresh: list[torch.Tensor] = []
        pairs = [
            (name, *pair)
            for name, change in (mutations or {}).items()
            for pair in ([change] if isinstance(change[0], str) else change)
        ]
        self._mutations: tuple[tuple[str, str, str], ...] = tuple(pairs)  # type: ignore[arg-type]

    def prepare(self, sources: Sequence[Specialisation]) -> None:
        """Nothing: kernels are compiled as they are asked for."""

    def check(self, what: str) -> None:
        """Nothing: launches have ended when they return."""

    def kernel(self, source: Specialisation, shared_bytes: int) -> _Kernel:
        """A kernel, compiled once for each specialisation in this process."""
        if shared_bytes > SHARED_LIMIT_BYTES:
            raise Fault(f"{source.expression} asks for {shared_bytes} bytes of shared memory, of {SHARED_LIMIT_BYTES}")
        return _Kernel(_library(source.file, source.expression, self._mutations), source.expression, shared_bytes)

    def tensor_map(
        self,
        address: int,
        dtype: torch.dtype,
        sizes: Sequence[int],
        strides: Sequence[int],
        box: Sequence[int],
        swizzle: int,
    ) -> bytes:
        """A tensor map, held to the rules of cuTensorMapEncodeTiled."""
        rank, element = len(sizes), dtype.itemsize
        rules = {
            f"{rank} dimensions; 1 to 5": 1 <= rank <= 5 and len(strides) == rank - 1 and len(box) == rank,
            f"address {address:#x}; a multiple of 16": address > 0 and address % 16 == 0,
            f"sizes {sizes}; 1 to 2^32": all(1 <= size <= 1 << 32 for size in sizes),
            f"strides {strides}; multiples of 16 below 2^40": all(s % 16 == 0 and 0 < s < 1 << 40 for s in strides),
            f"box {box}; 1 to 256": all(1 <= size <= 256 for size in box),
            f"rows of a box, {box[0] * element} bytes; multiples of 16": box[0] * element % 16 == 0,
            f"swizzle {swizzle}; 0, 32, 64, 128": swizzle in (0, 32, 64, 128),
            f"rows of a box, {box[0] * element} bytes; no more than the swizzle": not swizzle
            or box[0] * element <= swizzle,
        }
        for rule, kept in rules.items():
            if not kept:
                raise Fault(f"tensor map: {rule}")
        pad = [0] * (5 - rank)
        packed = struct.pack(
            "=Q4Q5I5H4B", address, *strides, *pad[: 5 - rank], *sizes, *pad, *box, *pad, rank, element, swizzle, _MARK
        )
        return packed.ljust(128, b"\0")

    def launch(
        self,
        kernel: _Kernel,
        grid: tuple[int, int, int],
        threads: int,
        parameters: ctypes.Structure,
        *,
        what: str = "",
        overlap: bool = True,
    ) -> None:
        """Run all blocks, one after another.

        Raises:  Fault with what went wrong in which block and thread
        """
        wanted = kernel.library.parameter_bytes()
        if ctypes.sizeof(parameters) != wanted:
            raise Fault(f"{kernel.expression} takes {wanted} bytes of parameters, not {ctypes.sizeof(parameters)}")
        aligned = ctypes.create_string_buffer(wanted + 64)
        start = -(-ctypes.addressof(aligned) // 64) * 64
        ctypes.memmove(start, ctypes.addressof(parameters), wanted)
        seed = self.seed * 1_000_003 + self.launches
        self.launches += 1
        spans = [(t.data_ptr(), t.data_ptr() + t.nbytes) for t in self.fresh]
        fresh = (ctypes.c_uint64 * (2 * len(spans)))(*(address for span in spans for address in span))
        said = kernel.library.launch(start, *grid, threads, kernel.shared_bytes, self.model, seed, fresh, len(spans))
        if said is not None:
            raise Fault(f"{what or kernel.expression}: {said.decode()}")
