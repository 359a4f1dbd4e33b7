"""libsrgan_fast for tests: built with g++ on the emulator in the place of a GPU, and called by ctypes."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT
from emulated import COMPILER, EMULATOR, KERNELS, NO_COMPILER

LIBRARY = ROOT / "library"
HEADER = LIBRARY / "include" / "srgan_fast.h"
CMAKE, NVCC = shutil.which("cmake"), shutil.which("nvcc")

needs_compiler = pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)
needs_cmake = pytest.mark.skipif(CMAKE is None or COMPILER is None, reason="needs cmake and g++; install both")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="needs nvcc; install the CUDA toolkit")

OK, BAD_ARGUMENT, UNSUPPORTED_NETWORK, NO_DEVICE, FAILED_CHECK, TOO_SMALL = 0, 1, 4, 6, 8, 9

_FLAGS = ("-std=c++17", "-fPIC", "-ffp-contract=off", "-w", "-fno-gnu-unique", "-U_FORTIFY_SOURCE")


def in_parallel(commands: list[list[str]]) -> None:
    """Two compilers at a time."""
    for start in range(0, len(commands), 2):
        running = [subprocess.Popen(command, stderr=subprocess.PIPE) for command in commands[start : start + 2]]
        for process in running:
            _, errors = process.communicate()
            assert process.returncode == 0, errors.decode()[:4000]


class Build:
    """The parts of the library that need no nvcc, compiled with g++ in a folder."""

    def __init__(self, folder: Path, mutations: dict[str, tuple[str, str]] | None = None) -> None:
        self.folder = folder
        sources = folder / "kernels"
        for path in KERNELS.rglob("*.cu*"):
            # The emulator has its own; left where they are, those beside a source would come first.
            if not (EMULATOR / path.name).exists():
                copied = sources / path.relative_to(KERNELS)
                copied.parent.mkdir(parents=True, exist_ok=True)
                old, new = (mutations or {}).get(str(path.relative_to(KERNELS)), ("", ""))
                text = path.read_text(encoding="utf-8")
                assert not old or text.count(old) == 1
                copied.write_text(text.replace(old, new) if old else text, encoding="utf-8")
        self.paths = [f"-I{place}" for place in (LIBRARY / "include", LIBRARY / "src", sources, sources / "include")]

    def objects(self, *sources: Path) -> list[str]:
        made = [str(self.folder / f"{source.name}.o") for source in sources]
        in_parallel([self._command(source, name) for source, name in zip(sources, made, strict=True)])
        return made

    def linked(self, name: str, *arguments: str) -> Path:
        in_parallel([[str(COMPILER), *arguments, "-o", str(self.folder / name)]])
        return self.folder / name

    def emulated(self, host: list[str], machine: list[str]) -> Path:
        """The library as it ships, but for the device and the tables of kernels."""
        own = self.objects(LIBRARY / "src" / "cuda" / "sm90.cu", LIBRARY / "tests" / "emulated.cpp")
        return self.linked("libsrgan_fast.so", "-shared", "-Wl,-Bsymbolic", *host, *machine, *own)

    def _command(self, source: Path, made: str) -> list[str]:
        kernels = source.suffix == ".cu" or source.name == "emulated.cpp"
        words = [f"-I{EMULATOR}", *self.paths, "-x", "c++", "-include", "cuda.cuh"] if kernels else self.paths
        # What computes has to be fast; the rest is compiled fast.
        level = "-O3" if source.name in ("machine.cpp", "reference.cpp") else "-O1" if kernels else "-O0"
        return [str(COMPILER), level, *_FLAGS, *words, "-c", str(source), "-o", made]


HOST = sorted((LIBRARY / "src").glob("*.cpp"))


class Library:
    """The C interface by ctypes."""

    def __init__(self, path: Path) -> None:
        self.c = ctypes.CDLL(str(path))
        self.c.srgan_fast_last_error.restype = self.c.srgan_fast_error_string.restype = ctypes.c_char_p
        self.c.srgan_fast_destroy.argtypes = (ctypes.c_void_p,)
        self.c.srgan_fast_destroy.restype = None
        numbers = (ctypes.c_int,) * 3
        self.c.srgan_fast_workspace_bytes.argtypes = (ctypes.c_void_p, *numbers, ctypes.c_void_p)
        pointer = ctypes.c_void_p
        self.c.srgan_fast_enqueue.argtypes = (pointer,) * 3 + numbers + (pointer, ctypes.c_size_t, pointer)

    @property
    def said(self) -> str:
        return self.c.srgan_fast_last_error().decode()

    def create(self, path: Path, device: int = 0) -> tuple[int, ctypes.c_void_p]:
        network = ctypes.c_void_p(1)
        return self.c.srgan_fast_create(str(path).encode(), device, ctypes.byref(network)), network

    def workspace(self, network: ctypes.c_void_p, n: int, h: int, w: int) -> int:
        size = ctypes.c_size_t()
        assert self.c.srgan_fast_workspace_bytes(network, n, h, w, ctypes.byref(size)) == OK, self.said
        return size.value
