"""Compiled kernels, kept on disk: compiled once for a machine, and again when anything that they are made of changes.

The folder must be the user's own, and an entry carries a digest, so that one that was cut short or altered is compiled
anew. Without a usable folder everything is compiled for this process alone.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from srgan_fast.kept import Kept
from srgan_fast.kernels import nvrtc
from srgan_fast.kernels.nvrtc import Cubin, Specialisation

_kept = Kept("cubins", "compiled kernels", 256 << 20)
_memory: dict[str, Cubin] = {}
_compiling = threading.Lock()


def get(specialisations: Sequence[Specialisation], architecture: str = "sm_90a") -> list[Cubin]:
    """Compiled kernels in the order asked for: from this process, from disk, or compiled, several at a time.

    Several processes may do so at once: each compiles what it misses, and of equal results the last one stays.

    Raises:  nvrtc.CompileError, after the others were compiled and kept
    """
    compiler = nvrtc.compiler()
    keys = [compiler.key(source, architecture) for source in specialisations]
    with _compiling:
        missing: dict[str, Specialisation] = {}
        for key, source in zip(keys, specialisations, strict=True):
            if key in _memory:
                continue
            body = _kept.read(key)
            if body is not None:
                _memory[key] = _of_body(body)
            else:
                missing[key] = source

        def make(key: str) -> None:
            _memory[key] = compiler.compile(missing[key], architecture)
            _kept.write(key, _to_body(_memory[key]))

        if missing:
            _in_parallel(make, list(missing), kept=_kept.usable)
            _kept.shrink()
        return [_memory[key] for key in keys]


def _in_parallel(make: Callable[[str], None], keys: list[str], kept: bool) -> None:
    progress = _Progress(len(keys), "once for this machine" if kept else "for this process alone")
    failures: list[BaseException] = []
    with ThreadPoolExecutor(min(len(keys), len(os.sched_getaffinity(0)))) as pool:
        for number, future in enumerate([pool.submit(make, key) for key in keys], 1):
            failure = future.exception()
            failures += [failure] if failure else []
            progress.done(number)
    progress.end()
    if failures:
        raise failures[0]


class _Progress:
    """One line on stderr: counted up in a terminal, else once before and once after."""

    def __init__(self, count: int, how_long: str) -> None:
        self._count, self._start = count, time.monotonic()
        self._terminal = bool(sys.stderr and sys.stderr.isatty())
        self._what = f"srgan-fast: compiling {count} GPU kernel{'s' * (count != 1)}, {how_long}"
        self._say(self._what + ("" if self._terminal else "\n"))

    def done(self, number: int) -> None:
        if self._terminal:
            self._say(f"\r{self._what}: {number}/{self._count}")

    def end(self) -> None:
        took = f"{time.monotonic() - self._start:.1f} s"
        self._say(f", {took}\n" if self._terminal else f"srgan-fast: compiled {self._count} in {took}\n")

    def _say(self, text: str) -> None:
        # A process may have no stderr, or a closed one.
        with suppress(OSError, ValueError, AttributeError):
            sys.stderr.write(text)
            sys.stderr.flush()


def _of_body(body: bytes) -> Cubin:
    about, image = body.split(b"\n", 1)
    return Cubin(image, **json.loads(about))


def _to_body(cubin: Cubin) -> bytes:
    return json.dumps({"symbol": cubin.symbol, "log": cubin.log}).encode() + b"\n" + cubin.image
