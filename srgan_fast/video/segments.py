"""A long job in pieces that are whole or not there: what a kill leaves is what the next run starts from.

The folder OUT.parts holds `manifest.json` (of which input and with which settings, and where the segments lie), and for
each finished segment its packets (`000000.nut`) and a record (`000000.json`), written last: a segment with a record is
finished. Any process that has the folder may render any segment.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from srgan_fast.atomic import atomic
from srgan_fast.errors import InputError, OutputError, UsageError

# Of a segment; it is as much longer as the next keyframe is away.
SEGMENT_S = 10
_VERSION = 1
_ENDS_BYTES, _SAMPLES, _SAMPLE_BYTES = 1 << 20, 16, 1 << 16
_MANIFEST, _LOCK, _JOINED, _PARTIAL = "manifest.json", "lock", "joined.part", "partial.json"
_UNFINISHED = re.compile(r"(\d{6})?\.[0-9a-f]{16}\.part")
_OURS = re.compile(
    r"\d{6}(\.partial)?\.(nut|json)|(\d{6})?\.[0-9a-f]{16}\.part|(manifest|partial)\.json|joined\.part|lock"
)


@dataclass(frozen=True)
class Segment:
    """The frames with start <= pts < stop, in ticks of the source; None is the beginning or the end."""

    index: int
    start: int | None
    stop: int | None


@dataclass(frozen=True)
class Record:
    """What is known of a finished segment; one without frames has no file."""

    frames: int
    size_bytes: int
    damaged: int
    missing: int
    notes: tuple[str, ...]


def cut(keyframes: Sequence[int], time_base: Fraction, seconds: float = SEGMENT_S) -> list[Segment]:
    """Segments that start at keyframes at least `seconds` apart; a single one where there are none."""
    starts: list[int | None] = [None]
    last = keyframes[0] if keyframes else 0
    for pts in sorted(set(keyframes)):
        if (pts - last) * time_base >= seconds:
            starts.append(pts)
            last = pts
    return [Segment(i, start, stop) for i, (start, stop) in enumerate(zip(starts, [*starts[1:], None], strict=True))]


def fingerprint(path: Path) -> dict[str, Any]:
    """What tells one input from another: its size, and a digest of its ends and of samples between them."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            spans = [(0, _ENDS_BYTES), (max(0, size - _ENDS_BYTES), _ENDS_BYTES)]
            spans += [(size * i // _SAMPLES, _SAMPLE_BYTES) for i in range(1, _SAMPLES)]
            digest = hashlib.sha256()
            for start, length in spans:
                file.seek(start)
                digest.update(file.read(length))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check its name and its permissions") from error
    return {"size_bytes": size, "sha256": digest.hexdigest()}


@dataclass(frozen=True)
class Folder:
    """Where the segments of a job lie: all that a process has to know of it to render some of them."""

    path: Path

    def packets(self, segment: Segment) -> Path:
        """Where the packets of a segment lie."""
        return self.path / f"{segment.index:06}.nut"

    def fresh(self, segment: Segment) -> Path:
        """Where to write the packets of a segment until they are whole.

        Each time another place: one that was given up for dead, and is not, must not write into its successor's file.
        """
        return self.path / f"{segment.index:06}.{secrets.token_hex(8)}.part"

    def partial(self, segment: Segment) -> Path:
        """Where those of a segment lie that was stopped before its end."""
        return self.path / f"{segment.index:06}.partial.nut"

    def joined(self) -> Path:
        """Where the whole is put together, before it goes to its place."""
        return self.path / _JOINED

    def record(self, segment: Segment) -> Record | None:
        """What is known of a finished segment; None where it is to be rendered."""
        try:
            read = json.loads(self._record_path(segment).read_text())
            record = Record(**{**read, "notes": tuple(read["notes"])})
            if record.frames and self.packets(segment).stat().st_size != record.size_bytes:
                return None
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return record

    def finish(self, segment: Segment, record: Record) -> None:
        """Declare a segment finished, once its file is in its place."""
        _write(self._record_path(segment), asdict(record))

    def leave(self, partial: Path) -> None:
        """Put what is joined so far beside the output, and remember that it is ours."""
        os.replace(self.joined(), partial)
        _write(self.path / _PARTIAL, {"name": partial.name, **_seen(partial)})

    def remove_left(self) -> None:
        """Remove what `leave` has put beside the output, if it is as it was."""
        with suppress(OSError, ValueError, KeyError):
            left = json.loads((self.path / _PARTIAL).read_text())
            path = self.path.parent / Path(left.pop("name")).name
            if left == _seen(path):
                path.unlink()

    def _record_path(self, segment: Segment) -> Path:
        return self.path / f"{segment.index:06}.json"


class Parts:
    """The folder of a job; made, or taken up again where it fits the input and the settings.

    A run that holds it keeps others out. `segments` and the encoder's `threads` are those of the run that began the
    job; None where this one does.

    Raises:  UsageError if it belongs to another input or other settings, holds what is not ours, or is in use;
             OutputError if it cannot be made or written
    """

    def __init__(
        self, path: Path, source: Mapping[str, Any], settings: Mapping[str, Any], *, restart: bool = False
    ) -> None:
        self.folder = Folder(path)
        self._path = path
        self._of = {"version": _VERSION, "source": dict(source), "settings": dict(settings)}
        self._lock = self._take()
        try:
            if restart:
                self.folder.remove_left()
                self._clear()
            self.segments, self.threads = self._read()
        except BaseException:
            self._lock.close()
            raise

    def begin(self, segments: Sequence[Segment], threads: int) -> None:
        """Note where the segments lie, and how many threads the encoder has, before the first is rendered."""
        self.segments, self.threads = list(segments), threads
        spans = [[segment.start, segment.stop] for segment in segments]
        _write(self._path / _MANIFEST, {**self._of, "threads": threads, "segments": spans})

    def close(self) -> None:
        """Let others have the folder; it goes where it has nothing to resume from."""
        if not self._lock.closed:
            if self.segments is None or not any(self.folder.record(segment) for segment in self.segments):
                self.remove()
            self._lock.close()

    def remove(self) -> None:
        """Remove the folder, after which it is no longer this run's."""
        with suppress(OSError):
            self._clear()
            (self._path / _LOCK).unlink(missing_ok=True)
            self._path.rmdir()
        self._lock.close()

    def _take(self) -> Any:
        while True:
            try:
                self._path.mkdir(exist_ok=True)
                strangers = [name for name in sorted(os.listdir(self._path)) if not _OURS.fullmatch(name)]
                if strangers:
                    raise UsageError(
                        f"expected {self._path} to hold parts of a video only, got {strangers[0]}; move it away"
                    )
                lock = (self._path / _LOCK).open("wb")
            except OSError as error:
                raise OutputError(
                    f"cannot use the folder {self._path}: {error.strerror}; name another output"
                ) from error
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                lock.close()
                raise UsageError(
                    f"another run is at work on {self._path}; wait for it, or name another output"
                ) from None
            # A run that has ended since the file was opened has removed it, and the next one would make a new one.
            with suppress(OSError):
                if os.path.samestat(os.fstat(lock.fileno()), (self._path / _LOCK).stat()):
                    return lock
            lock.close()

    def _read(self) -> tuple[list[Segment] | None, int | None]:
        try:
            there = json.loads((self._path / _MANIFEST).read_text())
            segments = [Segment(i, *map(_integer, span)) for i, span in enumerate(there.pop("segments"))]
            threads = _integer(there.pop("threads"))
        except FileNotFoundError:
            self._clear()  # of a run that was killed before it began
            return None, None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UsageError(f"the manifest in {self._path} is damaged; --restart throws its parts away") from None
        if there == (wanted := json.loads(json.dumps(self._of))):
            self._clear(_UNFINISHED)
            return segments, threads
        if there.get("version") != _VERSION:
            why = "another version of this program"
        elif there.get("source") != wanted["source"]:
            why = "another input"
        else:
            before, now = there.get("settings", {}), wanted["settings"]
            changed = [name for name in now if before.get(name) != now[name]]
            why = "other settings: " + ", ".join(f"{n} {before.get(n)}, not {now[n]}" for n in changed)
        raise UsageError(f"{self._path} has parts of {why}; --restart throws them away")

    def _clear(self, names: re.Pattern[str] = _OURS) -> None:
        for name in os.listdir(self._path):
            if name != _LOCK and names.fullmatch(name):
                (self._path / name).unlink(missing_ok=True)


def _seen(path: Path) -> dict[str, int]:
    status = path.stat()
    return {"size_bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def _write(path: Path, content: Mapping[str, Any]) -> None:
    try:
        with atomic(path) as file:
            file.write(json.dumps(content, indent=1).encode())
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; make room, the same command goes on") from error


def _integer(value: object) -> int | None:
    if value is not None and not isinstance(value, int):
        raise TypeError
    return value
