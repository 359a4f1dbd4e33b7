"""CUDA sources compiled where they run, by NVRTC, which CUDA builds of torch bring: without nvcc and without headers.

The sources are the `.cu` files beside this module; a kernel is a template there, asked for by a C++ expression.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import hashlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from srgan_fast.errors import SRGANFastError

SOURCES = Path(__file__).resolve().parent
# What knows sm_90a and its instructions.
_OLDEST = (12, 0)
_OPTIONS = ("-std=c++17", "--ptxas-options=-v")
_COMPILATION = 6  # NVRTC_ERROR_COMPILATION: the source is at fault, and the log says where


class CompileError(SRGANFastError):
    """NVRTC does not compile a kernel; says the first error, the file and the version of NVRTC."""


@dataclass(frozen=True)
class Specialisation:
    """A kernel for one choice of template arguments: a file under kernels/, and the C++ expression that names it."""

    file: str
    expression: str


@dataclass(frozen=True)
class Cubin:
    """A compiled kernel: machine code, the name that the kernel has in it, and what the compiler said."""

    image: bytes
    symbol: str
    log: str


class Compiler:
    """One NVRTC library. Several threads may compile with it at once.

    Raises:  OSError if it cannot be loaded; AttributeError if it is too old to give machine code
    """

    def __init__(self, library: Path) -> None:
        # NVRTC opens its builtins by a bare name, which finds them only if they are loaded.
        for builtins in sorted(library.parent.glob("libnvrtc-builtins.so.*")):
            ctypes.CDLL(str(builtins))
        self._nvrtc = ctypes.CDLL(str(library))
        self._nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
        for name in ("nvrtcGetCUBIN", "nvrtcGetCUBINSize", "nvrtcGetLoweredName"):
            getattr(self._nvrtc, name)
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        self.number = major.value, minor.value
        self.library = library

    @property
    def version(self) -> str:
        """As in 13.0."""
        return ".".join(map(str, self.number))

    def key(self, source: Specialisation, architecture: str) -> str:
        """A digest of all that the machine code depends on."""
        digest = hashlib.sha256()
        text, headers = sources(source.file)
        given = [source.file, source.expression, architecture, *_OPTIONS, self.version, text]
        for part in given + [part for header in headers.items() for part in header]:
            data = part.encode()
            digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()

    def compile(self, source: Specialisation, architecture: str = "sm_90a") -> Cubin:
        """Compile a kernel for an architecture.

        Raises:  CompileError
        """
        text, headers = sources(source.file)
        program = ctypes.c_void_p()
        names = (ctypes.c_char_p * len(headers))(*(name.encode() for name in headers))
        texts = (ctypes.c_char_p * len(headers))(*(header.encode() for header in headers.values()))
        created = self._nvrtc.nvrtcCreateProgram(
            ctypes.byref(program), text.encode(), source.file.encode(), len(headers), texts, names
        )
        self._expect(created, source)
        try:
            expression = source.expression.encode()
            self._expect(self._nvrtc.nvrtcAddNameExpression(program, expression), source)
            given = [option.encode() for option in (f"--gpu-architecture={architecture}", *_OPTIONS)]
            status = self._nvrtc.nvrtcCompileProgram(program, len(given), (ctypes.c_char_p * len(given))(*given))
            log = self._bytes(program, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog", source)
            said = log.rstrip(b"\0").decode(errors="replace").strip()
            self._expect(status, source, said)
            symbol = ctypes.c_char_p()
            lowered = self._nvrtc.nvrtcGetLoweredName(program, expression, ctypes.byref(symbol))
            self._expect(lowered, source)
            image = self._bytes(program, "nvrtcGetCUBINSize", "nvrtcGetCUBIN", source)
            return Cubin(image, (symbol.value or b"").decode(), said)
        finally:
            self._nvrtc.nvrtcDestroyProgram(ctypes.byref(program))

    def _bytes(self, program: ctypes.c_void_p, size_by: str, bytes_by: str, source: Specialisation) -> bytes:
        size = ctypes.c_size_t()
        self._expect(getattr(self._nvrtc, size_by)(program, ctypes.byref(size)), source)
        data = ctypes.create_string_buffer(size.value)
        self._expect(getattr(self._nvrtc, bytes_by)(program, data), source)
        return data.raw

    def _expect(self, status: int, source: Specialisation, log: str = "") -> None:
        if status == 0:
            return
        first = next((line.strip() for line in log.splitlines() if re.search(r"\b(error|fatal)\b", line)), "")
        if status != _COMPILATION or not first:
            first = f"{(self._nvrtc.nvrtcGetErrorString(status) or b'').decode()} {first}".strip()
        raise CompileError(f"{source.expression} of {source.file} does not compile by NVRTC {self.version}: {first}")


def sources(file: str) -> tuple[str, dict[str, str]]:
    """The text of a source under kernels/ and of all headers that it may include, by the name by which it does."""
    path = SOURCES / file
    found = [*(SOURCES / "include").glob("*.cuh"), *path.parent.glob("*.cuh")]
    headers = {header.name: header for header in found}
    return path.read_text(), {name: headers[name].read_text() for name in sorted(headers)}


def compile_cubin(specialisation: Specialisation, architecture: str = "sm_90a") -> Cubin:
    """Compile a kernel for an architecture, by the NVRTC that was found; nothing is cached.

    Raises:  CompileError, also where there is no NVRTC
    """
    return compiler().compile(specialisation, architecture)


def why_not() -> tuple[str, str] | None:
    """Why nothing can be compiled and what would change that; None if it can."""
    found = _found()
    return None if isinstance(found, Compiler) else found


def version() -> str:
    """The version of the NVRTC that was found.

    Raises:  CompileError if none was
    """
    return compiler().version


def compiler() -> Compiler:
    """The NVRTC that was found.

    Raises:  CompileError if none was
    """
    found = _found()
    if isinstance(found, Compiler):
        return found
    raise CompileError(f"{found[0]}; {found[1]}")


@cache
def _found() -> Compiler | tuple[str, str]:
    reasons: list[str] = []
    for library in candidates():
        try:
            found = Compiler(library)
        except (OSError, AttributeError) as error:
            reasons.append(f"{library} does not load ({error})")
            continue
        if found.number >= _OLDEST:
            return found
        reasons.append(f"{library} is NVRTC {found.version}, too old for sm_90a")
    package = "nvidia-cuda-nvrtc-cu12" if _torch_major() == 12 else "nvidia-cuda-nvrtc"
    cure = f"pip install {package}, or a CUDA build of torch, which brings it"
    return reasons[0] if reasons else "NVRTC, the compiler library of CUDA, is not installed", cure


def candidates() -> Iterator[Path]:
    """NVRTC libraries in the order in which they are tried: packages of this Python first, the system's last.

    Among those of one kind, that of torch's own major version comes first: the driver that runs torch loads its code.
    """
    packages = importlib.util.find_spec("nvidia")
    places = list(packages.submodule_search_locations or ()) if packages else []
    yield from _libraries(folder for place in places for folder in sorted(Path(place).glob("*/lib")))
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    homes += ["/usr/local/cuda", sys.prefix]
    yield from _libraries(Path(home, lib) for home in homes for lib in ("lib64", "lib"))
    name = ctypes.util.find_library("nvrtc")
    if name:
        yield Path(name)


def _libraries(folders: Iterator[Path]) -> list[Path]:
    """The NVRTC libraries in some folders, of torch's major version first, then the newest."""
    found = []
    for folder in folders:
        for library in folder.glob("libnvrtc.so.*"):
            # Not the links' targets, which have longer names, and not the second library of the package ("alt").
            named = re.fullmatch(r"libnvrtc\.so\.(\d+)", library.name)
            if named:
                found.append((int(named[1]) != _torch_major(), -int(named[1]), library))
    return [library for *_, library in sorted(found, key=lambda entry: entry[:2])]


def _torch_major() -> int | None:
    """The major version of the CUDA that torch was built for; None for a build without CUDA."""
    cuda = torch.version.cuda
    return int(cuda.split(".")[0]) if cuda else None
