"""Compiled kernels, kept on disk: compiled once for a machine, and again when anything that they are made of changes.

The folder must be the user's own, and an entry carries a digest, so that one that was cut short or altered is compiled
anew. Without a usable folder everything is compiled for this process alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import stat
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from srgan_fast import private
from srgan_fast.errors import BackendUnavailable, OutputError
from srgan_fast.kernels import nvrtc
from srgan_fast.kernels.nvrtc import Cubin, Specialisation

MOST_BYTES = 256 << 20
_MAGIC = b"srgan-fast cubin 1\n"
# A folder that was named by mistake may hold files of another kind, which are left alone.
_ENTRY = re.compile(r"[0-9a-f]{64}")

_log = logging.getLogger(__name__)
_memory: dict[str, Cubin] = {}
_compiling = threading.Lock()
_warned: set[str] = set()


def get(specialisations: Sequence[Specialisation], architecture: str = "sm_90a") -> list[Cubin]:
    """Compiled kernels in the order asked for: from this process, from disk, or compiled, several at a time.

    Several processes may do so at once: each compiles what it misses, and of equal results the last one stays.

    Raises:  nvrtc.CompileError, after the others were compiled and kept
    """
    compiler = nvrtc.compiler()
    keys = [compiler.key(source, architecture) for source in specialisations]
    with _compiling:
        folder = _folder()
        missing: dict[str, Specialisation] = {}
        for key, source in zip(keys, specialisations, strict=True):
            if key in _memory:
                continue
            kept = _read(folder / key, key) if folder else None
            if kept:
                _memory[key] = kept
            else:
                missing[key] = source

        def make(key: str) -> None:
            _memory[key] = compiler.compile(missing[key], architecture)
            if folder:
                _write(folder / key, key, _memory[key])

        if missing:
            _in_parallel(make, list(missing), kept=folder is not None)
            if folder:
                _shrink(folder)
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


def _folder() -> Path | None:
    """The folder of the cache; None, with one warning, if it is not safe or not there."""
    try:
        return private.folder("cubins")
    except BackendUnavailable as error:
        _warn(str(error))
        return None


def _warn(reason: str) -> None:
    """Say once what keeps the cache from being used."""
    if reason not in _warned:
        _warned.add(reason)
        _log.warning("compiled kernels are not kept: %s", reason)


def _digest(key: str, body: bytes) -> bytes:
    return hashlib.sha256(key.encode() + body).hexdigest().encode()


def _read(path: Path, key: str) -> Cubin | None:
    """An entry; None if there is none, or a damaged one."""
    data = private.read(path)
    if data is None:
        return None
    start = len(_MAGIC)
    digest, body = data[start : start + 64], data[start + 64 :]
    if not data.startswith(_MAGIC) or digest != _digest(key, body):
        return None
    with suppress(OSError):
        os.utime(path)  # what was used last is removed last
    about, image = body.split(b"\n", 1)
    return Cubin(image, **json.loads(about))


def _write(path: Path, key: str, cubin: Cubin) -> None:
    body = json.dumps({"symbol": cubin.symbol, "log": cubin.log}).encode() + b"\n" + cubin.image
    try:
        private.write(path, _MAGIC + _digest(key, body) + body)
    except OutputError as error:
        _warn(str(error))


def _shrink(folder: Path) -> None:
    """Remove the entries that were not used for the longest time, until the rest are within the bound."""
    private.sweep(folder)
    entries = []
    with suppress(OSError):
        for path in folder.iterdir():
            with suppress(OSError):  # another process removes some too
                about = path.stat()
                if _ENTRY.fullmatch(path.name) and stat.S_ISREG(about.st_mode):
                    entries.append((about.st_mtime, about.st_size, path))
    size = sum(entry[1] for entry in entries)
    for _, freed, path in sorted(entries):
        if size <= MOST_BYTES:
            break
        with suppress(OSError):
            path.unlink()
            size -= freed
