"""Requests to stop a run: Ctrl-C, SIGTERM, SIGHUP, and a limit of time."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from srgan_fast.errors import UsageError


@contextmanager
def stop_requests(*, insistent: tuple[int, ...] = (signal.SIGINT,)) -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C, SIGTERM and SIGHUP into a flag that the loop looks at between steps; a second one stops at once.

    Only those in `insistent` count as a second one. By itself SIGTERM does not: a launcher passes it on to its ranks
    after the Ctrl-C that they have had. SIGHUP, the end of a terminal, stays ignored where it was: under nohup a run
    goes on.
    """
    asked = False
    pressed = 0

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked, pressed
        asked = True
        pressed += number in insistent
        if number in insistent and pressed > 1:
            raise KeyboardInterrupt

    try:
        before = {number: signal.signal(number, ask) for number in _taken()}
    except ValueError:  # not the main thread: whoever embeds us handles signals
        before = {}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _taken() -> Iterator[signal.Signals]:
    yield from (signal.SIGINT, signal.SIGTERM)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        yield signal.SIGHUP


class TimeLimit:
    """A number of seconds from now on, or none.

    Raises:  UsageError for what is no number above 0
    """

    def __init__(self, seconds: float | None) -> None:
        if seconds is not None and not seconds > 0:
            raise UsageError(f"expected a time limit above 0 seconds, got {seconds}")
        self._end = None if seconds is None else time.monotonic() + seconds

    @property
    def passed(self) -> bool:
        """Whether the time is over."""
        return self._end is not None and time.monotonic() >= self._end
