"""The part of `srgan-fast upscale` that is for pipes: y4m video from stdin to stdout, words to stderr."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from srgan_fast.cli.video import Choice
from srgan_fast.errors import InputError, Interrupted, OutputError, UsageError

if TYPE_CHECKING:
    from srgan_fast.upscaler import Upscaler
    from srgan_fast.video.colour import Matrix


def wanted(source: Path, target: Path) -> bool:
    """Whether stdin or stdout is meant.

    Raises:  UsageError if only one of them is
    """
    ends = [str(path) == "-" for path in (source, target)]
    if any(ends) and not all(ends):
        raise UsageError(f"y4m goes from stdin to stdout: expected - and -, got {source} and {target}; give both")
    return all(ends)


def run(make: Callable[[], Upscaler], choice: Choice) -> None:
    """Upscale y4m from stdin to stdout.

    Raises:  UsageError for options that a pipe cannot have; OutputError where its reader is gone; what
             `video.y4m.upscale` raises
    """
    if others := [name for name in choice.given() if name not in ("--matrix", "--reuse")]:
        raise UsageError(f"{others[0]} is for files: y4m is not compressed; leave it out")
    if sys.stdin.isatty():
        raise UsageError("expected y4m video on stdin, got a terminal; see docs/embedding.md for a pipe of ffmpeg")
    choice.check()
    from srgan_fast.video import y4m

    summary = y4m.Summary()
    start = time.perf_counter()
    try:
        header = y4m.read_header(sys.stdin.buffer, cast("Matrix | None", choice.matrix))
        upscaler = make()
        reuse = cast(Literal["auto", "off"], choice.reuse or "auto")
        y4m.upscale(sys.stdin.buffer, sys.stdout.buffer, header, upscaler, reuse=reuse, summary=summary)
    except InputError as error:
        if not summary.frames:
            raise
        sys.stdout.buffer.flush()
        raise InputError(f"{error}; {summary.frames} frames were written") from error
    except BrokenPipeError:
        # What is left in the buffer would be tried again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OutputError(f"whoever reads stdout left after {summary.frames} frames") from None
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; {summary.frames} frames were written") from None
    seconds = time.perf_counter() - start
    how = f"x{upscaler.scale}, {upscaler.backend_name} {upscaler.precision} on {upscaler.device}"
    print(f"{summary.frames} frames upscaled ({how}) in {seconds:.2f} s", file=sys.stderr)
    if summary.saved >= 0.005:
        print(f"{summary.saved:.0%} of the pixels had not changed, and were not computed again", file=sys.stderr)
    for note in summary.notes:
        print(f"note: {note}", file=sys.stderr)
