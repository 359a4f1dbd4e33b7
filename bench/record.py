"""One measurement a line of JSON, with what it was measured on and what it was worth."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

_ROOT = Path(__file__).resolve().parent.parent


def latency(samples_ms: Sequence[float]) -> dict[str, Any]:
    """Percentiles of raw samples, which are kept."""
    ordered = sorted(samples_ms)

    def at(fraction: float) -> float:
        position = fraction * (len(ordered) - 1)
        low = int(position)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (ordered[high] - ordered[low]) * (position - low)

    return {"p20": at(0.2), "p50": at(0.5), "p80": at(0.8), "samples": list(samples_ms)}


def environment() -> dict[str, Any]:
    """What a speed depends on: machine, versions, commit, and a digest of the sources."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": _cpu_name(),
        "amx": torch.cpu._is_amx_tile_supported(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "cuda": torch.version.cuda,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain")),
        "sources": source_digest(),
    }


def source_digest() -> str:
    """sha256 over the Python sources of the package, its kernels and benches: a record is stale when it changes."""
    total = hashlib.sha256()
    for folder in ("srgan_fast", "kernels", "bench"):
        for path in sorted((_ROOT / folder).rglob("*.py")):
            total.update(path.relative_to(_ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:16]


def record(suite: str, name: str, **fields: Any) -> dict[str, Any]:
    """A record with its id, time, environment and command."""
    content = {
        "schema": 1,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "suite": suite,
        "name": name,
        **fields,
        "env": environment(),
        "command": " ".join(["srgan-fast", *sys.argv[1:]]),
    }
    text = json.dumps(content, sort_keys=True)
    return {"id": hashlib.sha256(text.encode()).hexdigest()[:12], **content}


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
