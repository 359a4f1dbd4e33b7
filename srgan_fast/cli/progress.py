"""The progress of a training run, and of the phases of a build: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

# Seconds between two lines where there is no terminal: a log of a night has some hundreds.
_LINE_S = 60.0
# The terms worth a place in one line; the log has all.
_SHOWN = ("content", "adversarial", "discriminator")


class _Shown:
    """How far a run is, out of a number of steps or frames that need not be known."""

    def __init__(self, unit: str, total: int | None, done: int, clock: Callable[[], float]) -> None:
        self._unit, self._total, self._first, self._clock = unit, total, done, clock
        self._began = self._told = clock()
        console = Console(stderr=True)
        self._bar = Bar(
            BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False), console=console
        )
        self._task = self._bar.add_task("", total=total, completed=done)
        self._live = console.is_terminal

    def __enter__(self) -> Self:
        if self._live:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._live:
            self._bar.stop()

    def _show(self, position: int, said: Callable[[], str]) -> None:
        if self._live:
            self._bar.update(self._task, completed=position, description=said())
        elif self._clock() - self._told >= _LINE_S:
            self._told = self._clock()
            of = "" if self._total is None else f" of {self._total}"
            print(f"{self._unit} {position}{of}: {said()}", file=sys.stderr, flush=True)

    def _left(self, position: int) -> list[str]:
        if self._total is None:
            return []
        done = position - self._first
        left_s = (self._clock() - self._began) / done * max(0, self._total - position) if done > 0 else 0.0
        return [f"{_clock_time(left_s)} left"]


class Progress(_Shown):
    """Losses, images a second, the last validation, and the time that is left; called with each step of a run."""

    def __init__(self, steps: int, done: int, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__("step", steps, done, clock)
        self._psnr_db: float | None = None

    def __call__(self, step: int, record: Mapping[str, Any]) -> None:
        """Show a step and its line of the log."""
        self._psnr_db = record.get("val_psnr_db", self._psnr_db)
        self._show(step, lambda: self.line(step, record))

    def line(self, step: int, record: Mapping[str, Any]) -> str:
        """Time left, losses, speed, score."""
        said = self._left(step)
        said += [f"{name} {record[name]:.5f}" for name in _SHOWN if name in record]
        said.append(f"{record['images_per_s']:.1f} images/s")
        if self._psnr_db is not None:
            said.append(f"validation {self._psnr_db:.3f} dB")
        return ", ".join(said)


class VideoProgress(_Shown):
    """Frames a second, the time that is left, and which stage the others wait for; called with each frame written."""

    def __init__(self, frames: int | None, done: int, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__("frame", frames, done, clock)

    def __call__(self, frame: int, busy_s: Mapping[str, float]) -> None:
        """Show a frame's number and the seconds that each stage has worked so far."""
        self._show(frame, lambda: self.line(frame, busy_s))

    def line(self, frame: int, busy_s: Mapping[str, float]) -> str:
        """Time left, speed, bottleneck."""
        seconds = max(1e-9, self._clock() - self._began)
        slowest = max(busy_s, key=lambda name: busy_s[name])
        share = min(1.0, busy_s[slowest] / seconds)
        return ", ".join(
            [
                *self._left(frame),
                f"{(frame - self._first) / seconds:.2f} fps",
                f"{slowest} is busy {share:.0%} of the time",
            ]
        )


class Phases:
    """Phases of a long work, one inside another: a bar for each on a terminal, elsewhere a line for each outermost one.

    Told by any thread; see `srgan_fast.tensorrt.build.Progress`.
    """

    def __init__(self) -> None:
        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self._bars = Bar(*columns, console=console, transient=True)
        self._live = console.is_terminal
        self._tasks: dict[str, TaskID] = {}
        self._said: TaskID | None = None

    def __enter__(self) -> Phases:
        if self._live:
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._live:
            self._bars.stop()

    def say(self, what: str) -> None:
        """Show what is done next, of which nobody knows the steps."""
        if not self._live:
            print(what, file=sys.stderr, flush=True)
            return
        if self._said is not None:
            self._bars.remove_task(self._said)
        self._said = self._bars.add_task(what, total=None)

    def phase(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins, inside of another one or by itself."""
        if self._live:
            self._tasks[name] = self._bars.add_task(f"  {name}" if parent else name, total=steps)
        elif parent is None:
            print(name, file=sys.stderr, flush=True)

    def step(self, name: str, i: int) -> bool:
        """Step i of a phase is done; it always goes on."""
        if name in self._tasks:
            self._bars.update(self._tasks[name], completed=i + 1)
        return True

    def done(self, name: str) -> None:
        """A phase is over."""
        if name in self._tasks:
            self._bars.remove_task(self._tasks.pop(name))


def _clock_time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
