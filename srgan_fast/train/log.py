"""`train.jsonl`: a line a step, and a line for everything that happens to a run."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from srgan_fast.errors import OutputError, UsageError

NAME = "train.jsonl"


class RunLog:
    """The log of the run in a folder, which it keeps other processes out of while it is open.

    A line with `step` and without `event` is a step. A line with `event` and `step` says that the run went on from that
    step: what stands above it of later steps was undone. When a run resumes, the lines of steps that it will
    repeat are dropped; a rollback keeps them, since they show how the run went astray.

    Raises:  OutputError if it cannot be written; UsageError if another process trains in the folder
    """

    def __init__(self, folder: Path, position: int) -> None:
        self._path = folder / NAME
        try:
            self._file = self._path.open("ab")
        except OSError as error:
            raise self._refused(error, "name a folder that can be written") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # Some network file systems have no locks; then there is none.
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                self._file.close()
                raise UsageError(f"another process trains in {folder}; wait for it, or name another folder") from error
        # Not a device: one has no end to cut at, and nothing to make last.
        self._regular = self._path.is_file()
        if self._regular:
            try:
                os.truncate(self._path, _end_of(self._path, position))
            except OSError as error:
                self._file.close()  # and the lock with it
                raise self._refused(error, "check its permissions") from error

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        with suppress(OSError):  # closing tries once more to write what just failed
            self._file.close()

    def write(self, *records: Mapping[str, Any]) -> None:
        """Add a line for each record."""
        if not records:
            return
        try:
            self._file.write("".join(json.dumps(_plain(record)) + "\n" for record in records).encode())
            self._file.flush()
        except OSError as error:
            raise self._refused(error, "make room and resume") from error

    def sync(self) -> None:
        """Make what was written last: before a checkpoint, so that one never has steps that the log has not."""
        try:
            if self._regular:
                os.fsync(self._file.fileno())
        except OSError as error:
            raise self._refused(error, "make room and resume") from error

    def _refused(self, error: OSError, cure: str) -> OutputError:
        return OutputError(f"cannot write {self._path}: {error.strerror}; {cure}")


def read_events(folder: Path) -> list[dict[str, Any]]:
    """The events of a run, in their order.

    Raises:  OSError, of the system
    """
    return [event for _, event in _events(folder)]


def read_steps(folder: Path) -> Iterator[dict[str, Any]]:
    """The steps that count, in their order, one by one; a line cut short by a crash is left out.

    Cost:    the log is read twice, and never held
    Raises:  OSError, of the system
    """
    # Where each event stands, and the earliest step that it or one after it goes back to; the next one last.
    limits: list[tuple[int, float]] = []
    for number, event in reversed(_events(folder)):
        limits.append((number, min(event.get("step", math.inf), limits[-1][1] if limits else math.inf)))
    with (folder / NAME).open("rb") as file:
        for number, line in enumerate(file):
            while limits and limits[-1][0] < number:
                limits.pop()
            record = _parsed(line)
            if record is not None and "event" not in record and (not limits or record["step"] <= limits[-1][1]):
                yield record


def _events(folder: Path) -> list[tuple[int, dict[str, Any]]]:
    """Events with the numbers of their lines."""
    with (folder / NAME).open("rb") as file:
        # Of a million lines few hold the word, and only those are worth parsing.
        found = ((number, _parsed(line)) for number, line in enumerate(file) if b'"event"' in line)
        return [(number, record) for number, record in found if record is not None and "event" in record]


def _end_of(path: Path, position: int) -> int:
    """Where the lines end that a run which goes on from `position` will not write again."""
    end = offset = 0
    with path.open("rb") as file:
        for line in file:
            offset += len(line)
            record = _parsed(line)
            if record is not None and ("event" in record or record["step"] <= position):
                end = offset
    return end


def _parsed(line: bytes) -> dict[str, Any] | None:
    with suppress(ValueError):
        record = json.loads(line)
        if line.endswith(b"\n") and isinstance(record, dict) and ("event" in record or "step" in record):
            return record
    return None


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no infinity and no NaN."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in record.items()
    }
