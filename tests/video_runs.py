"""Runs of the command that are signalled, killed or kept from writing: a process that has loaded all, and forks each.

    python tests/video_runs.py '[[{"arguments": [...], "after": {"frames": 9}, "signals": [9]}, ...], ...]'

The runs of an inner list go side by side. Each may name the `limit` of the size of a file in bytes, and gives a line of
JSON: its exit code (minus the signal that killed it) and what it said. `after` is a number of seconds, or of frames:
only then are the signals sent.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from srgan_fast import cli, upscaler
from srgan_fast.cli import video
from srgan_fast.video import job, segments

FRAME_S = 0.02


def child(run: dict[str, Any], said: int, frames: Path) -> None:
    """The command as it is, but for short segments, frames that take their time, and a count of them."""
    os.dup2(said, 1)
    os.dup2(said, 2)
    torch.set_num_threads(1)
    job.cut = lambda keyframes, time_base: segments.cut(keyframes, time_base, 0.5)
    whole, shown = upscaler.Upscaler.__call__, video._Shown.__call__

    def slow(self: Any, frames: Any, **options: Any) -> Any:
        time.sleep(FRAME_S)
        return whole(self, frames, **options)

    def count(self: Any, *state: Any) -> None:
        with frames.open("a") as file:
            file.write(".")
        shown(self, *state)

    upscaler.Upscaler.__call__, video._Shown.__call__ = slow, count  # type: ignore[method-assign]
    if "limit" in run:
        resource.setrlimit(resource.RLIMIT_FSIZE, (run["limit"], run["limit"]))
    sys.argv = ["srgan-fast", "upscale", *run["arguments"]]
    code = 1
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def watched(run: dict[str, Any], said: Path, frames: Path) -> dict[str, Any]:
    """Start a run, send its signals when they are due, and tell what became of it."""
    frames.touch()
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        child(run, os.open(said, os.O_WRONLY | os.O_CREAT), frames)
    after = run.get("after", 0)
    if isinstance(after, dict):
        while frames.stat().st_size < after["frames"] and time.monotonic() - start < 60:
            time.sleep(0.005)
    else:
        time.sleep(after)
    for each in run.get("signals", []):
        os.kill(pid, each)
        time.sleep(0.02)
    signalled = time.monotonic()
    _, status = os.waitpid(pid, 0)
    now = time.monotonic()
    code = os.waitstatus_to_exitcode(status)
    return {"code": code, "said": said.read_text(), "took_s": now - signalled, "seconds": now - start}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        count = 0
        for runs in json.loads(sys.argv[1]):
            files = [Path(folder) / f"{count + number}.json" for number in range(len(runs))]
            count += len(runs)
            for run, file in zip(runs, files, strict=True):
                if os.fork() == 0:
                    done = watched(run, file.with_suffix(".said"), file.with_suffix(".frames"))
                    file.write_text(json.dumps(done))
                    os._exit(0)
            for _ in runs:
                os.wait()
            for file in files:
                print(file.read_text(), flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    main()
