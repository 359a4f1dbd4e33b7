"""One measurement a line of JSON, with what it was measured on and what it was worth."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
import subprocess
import sys
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from srgan_fast.errors import OutputError

# In a checkout the parent of bench/, srgan_fast/ and kernels/; in an installed package, which has the two inside,
# the package itself.
ROOT = Path(__file__).resolve().parent.parent
_CHECKOUT = (ROOT / "srgan_fast").is_dir()
_SUFFIXES = {".py", ".cu", ".cuh", ".h"}
STAMP = ROOT / "bench" / "results" / "stamp.json"

# Whose versions a speed may depend on.
_PACKAGES = ("triton", "tensorrt", "onnx", "onnxruntime", "openvino", "spandrel")

# One process, one value: both sides of a ratio must carry the same.
RUN = uuid.uuid4().hex[:12]


def latency(samples_ms: Sequence[float]) -> dict[str, Any]:
    """Percentiles of raw samples, which are kept."""
    ordered = sorted(samples_ms)

    def at(fraction: float) -> float:
        position = fraction * (len(ordered) - 1)
        low = int(position)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (ordered[high] - ordered[low]) * (position - low)

    return {"p20": at(0.2), "p50": at(0.5), "p80": at(0.8), "samples": list(samples_ms)}


def record(suite: str, name: str, **fields: Any) -> dict[str, Any]:
    """A record with its id, time, environment and command; the id is a digest of the rest."""
    content = {
        "schema": 2,
        "run": RUN,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "suite": suite,
        "name": name,
        **fields,
        "env": {**environment(), "sources": source_digest(suite)},
        # A record is published: of a path only the name, not where its owner keeps it.
        "command": " ".join([_program(), *(Path(word).name if os.sep in word else word for word in sys.argv[1:])]),
    }
    return {"id": content_id(content), **content}


def _program() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name}" if spec is not None and spec.name.startswith("srgan_fast.") else "srgan-fast"


def content_id(content: dict[str, Any]) -> str:
    """The id that belongs to a record's content: a line that was edited no longer has it."""
    text = json.dumps({key: value for key, value in content.items() if key != "id"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@cache
def environment() -> dict[str, Any]:
    """What a speed depends on: machine, versions, commit. `dirty` is None where no checkout can say."""
    capability = torch.backends.cpu.get_cpu_capability()
    commit, dirty = _state() or _stamped() or (None, None)
    return {
        "cpu": _cpu_name(),
        "cpu_capability": capability,
        "amx": torch.cpu._is_amx_tile_supported(),
        "threads": torch.get_num_threads(),
        **_gpu(),
        "cuda": torch.version.cuda,
        "torch": str(torch.__version__),
        **{package: _version(package) for package in _PACKAGES},
        "python": platform.python_version(),
        "commit": commit,
        "dirty": dirty,
    }


def write_stamp() -> str:
    """Note the commit of this checkout and whether it is clean, for a copy of it that has no .git; returns the note.

    Raises:  OutputError where git cannot say
    """
    state = _state()
    if state is None:
        raise OutputError("expected a git checkout to stamp, got none; run make gpu-stamp where the .git is")
    note = json.dumps({"commit": state[0], "dirty": state[1], "files": _tree_digest()})
    STAMP.write_text(note + "\n")
    return note


def _state() -> tuple[str | None, bool] | None:
    """The commit of this checkout and whether its files differ from it; None where git cannot say."""
    top = _git("rev-parse", "--show-toplevel")
    # An installed package may lie inside a repository that is not its own.
    if not _CHECKOUT or top is None or Path(top).resolve() != ROOT:
        return None
    # Records are no sources: writing the first must not make the second dirty.
    status = _git("status", "--porcelain", "--", ".", ":(exclude)bench/results")
    return None if status is None else (_git("rev-parse", "HEAD"), bool(status))


def _stamped() -> tuple[str | None, bool] | None:
    """The same from the stamp; files that are not those that were stamped are changes."""
    if not _CHECKOUT or not STAMP.is_file():
        return None
    note = json.loads(STAMP.read_text())
    return note["commit"], note["dirty"] or note["files"] != _tree_digest()


def _tree_digest() -> str:
    total = hashlib.sha256()
    for folder in ("bench", "kernels", "srgan_fast", "tests"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in _SUFFIXES and path.is_file():
                total.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()[:16]


@cache
def source_digest(suite: str) -> str:
    """sha256 over the sources behind a suite: its own file, every kernel, and what of the package they import.

    A record is stale when this has changed since.
    """
    total = hashlib.sha256()
    for path in sources_behind(suite):
        total.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()[:16]


def sources_behind(suite: str) -> list[Path]:
    """The files whose change may change what a suite measures, in a fixed order."""
    start = ROOT / "bench" / f"{suite}.py"
    if not start.is_file():
        raise ValueError(f"expected a suite that has a file in {start.parent}, got {suite!r}")
    found: set[Path] = set()
    waiting = {start, *(path for path in (ROOT / "kernels").rglob("*") if path.suffix in _SUFFIXES)}
    while waiting:
        path = waiting.pop()
        found.add(path)
        if path.suffix == ".py":
            waiting |= _imported(path) - found
    return sorted(found)


def _imported(path: Path) -> set[Path]:
    """The files of this package that a file imports, at any depth; names that are no modules are passed over."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    package = ROOT / "srgan_fast" if _CHECKOUT else ROOT
    files = set()
    for name in names:
        first, *rest = name.split(".")
        if first != "srgan_fast" or not rest:
            continue
        base = (ROOT if rest[0] in ("kernels", "bench") else package).joinpath(*rest)
        files |= {file for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file()}
    return files


def _gpu() -> dict[str, Any]:
    if not torch.cuda.is_available():
        return {"gpu": None, "driver": None, "clocks_mhz": None}
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.mem", "--format=csv,noheader,nounits", "--id=0"]
    said = (_output(query) or "").split(", ")
    driver, sm, memory = said if len(said) == 3 else (None, None, None)
    clocks = {"sm": sm, "memory": memory} if driver else None
    return {"gpu": torch.cuda.get_device_name(), "driver": driver, "clocks_mhz": clocks}


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    return _output(["git", *arguments])


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
