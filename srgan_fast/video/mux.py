"""From segments to the file: their packets in one stream, every other stream of the source copied bit for bit."""

from __future__ import annotations

import heapq
import io
import os
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from math import lcm
from pathlib import Path
from typing import Any

import av
import av.error

from srgan_fast.errors import OutputError, UsageError
from srgan_fast.video.encoder import ORIGIN, Codec, Output, holds_hdr, tag
from srgan_fast.video.source import FFMPEG_ERRORS, Source

CONTAINERS = {
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".mov": "mov",
    ".mkv": "matroska",
    ".webm": "webm",
    ".ts": "mpegts",
    ".m2ts": "mpegts",
    ".nut": "nut",
}
_TURNS = frozenset({"mp4", "mov", "matroska"})
_CHAPTERS = frozenset({"mp4", "mov", "matroska", "webm", "nut"})
_TELL_SHAPE = ("264", "265", "hevc")
_UPRIGHT = (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
_MOST_TICKS = 10_000_000  # a second, in an MP4
_TICK = {"matroska": Fraction(1, 1000), "webm": Fraction(1, 1000), "mpegts": Fraction(1, 90_000)}

# What describes the old file or its coding, not the work.
_FILE_KEYS = frozenset({"major_brand", "minor_version", "compatible_brands", "encoder", "duration"})
_STREAM_KEYS = frozenset({"rotate", "encoder", "duration", "bps", "vendor_id", "number_of_frames", "number_of_bytes"})


@dataclass(frozen=True)
class Written:
    """What `join` wrote."""

    frames: int
    duration_s: float
    notes: list[str]


def container_of(target: Path) -> str:
    """The name of a container by the suffix of a file.

    Raises:  UsageError for a suffix that is none of ours
    """
    suffix = target.suffix.lower()
    if suffix not in CONTAINERS:
        raise UsageError(f"expected an output of {', '.join(CONTAINERS)}, got {target.name}")
    return CONTAINERS[suffix]


def limits(source: Source, target: Path, codec: Codec) -> list[str]:
    """What the container of `target` cannot hold of a source: [] if nothing is lost.

    Raises:  UsageError if it cannot even hold the video
    """
    container = container_of(target)
    with av.open(io.BytesIO(), "w", format=container) as trial:
        try:
            trial.add_stream(codec.name)
        except ValueError as error:
            raise UsageError(f"{target.suffix} cannot hold video of {codec.name}; write {target.stem}.mkv") from error
    with source.opened() as (opened, main):
        return _losses(source, opened, main, container, codec.name)


def join(
    source: Source, segments: Sequence[Path], target: Path, container: str, output: Output, *, partly: bool = False
) -> Written:
    """Write `target`: the video of the segments in order, and all else that the container can hold of the source.

    Times are those of the source from its beginning on. The name of `target` says nothing of its container. With
    `partly` the segments are not all, and the other streams end with them.

    Raises:  OutputError if segments do not fit together, or the file cannot be written
    """
    video = _Video([path for path in segments if path.stat().st_size], output, source.info.end)
    notes: list[str] = []
    # What lies before zero a player would not show.
    begin = min(source.info.start_s, video.times[0] * output.time_base)
    tick = _TICK.get(container)
    if tick is not None and (output.time_base / tick).denominator != 1:
        notes.append(f"{container} rounds timestamps to {1_000_000 * tick} microseconds")
    try:
        with ExitStack() as stack:
            opened, main = stack.enter_context(source.opened())
            notes += [f"dropped {lost}" for lost in _losses(source, opened, main, container, output.codec)]
            out = stack.enter_context(
                av.open(os.fspath(target), "w", format=container, options=_options(container, opened, output))
            )
            stream = video.add_to(out, source, main, container)
            copies = _Copies(opened, main, out, container, notes, begin)
            out.metadata.update(_kept(opened.metadata, _FILE_KEYS))
            _copy_chapters(opened, out, container, begin)
            shift = _ticks(begin, output.time_base)
            end = (video.times[0] - shift + video.duration) * output.time_base if partly else None
            for at, packet in heapq.merge(video.packets(stream, shift), copies.packets(), key=lambda pair: pair[0]):
                if end is not None and at >= end:
                    break
                try:
                    out.mux_one(packet)
                except (av.error.ArgumentError, av.error.InvalidDataError):
                    if packet.stream is stream:
                        raise
                    copies.refused += 1
        if copies.refused:
            notes.append(f"dropped {copies.refused} damaged packets of other streams")
        with target.open("rb+") as file:
            os.fsync(file.fileno())
        with av.open(os.fspath(target)):
            pass  # what cannot be read again was not written rightly
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror}; free some space or name another folder") from error
    except FFMPEG_ERRORS as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}; try another container") from error
    return Written(len(video.times), float(video.duration * output.time_base), notes)


class _Video:
    """The packets of all segments as one stream: decoding times are made anew from the times of all frames."""

    def __init__(self, segments: Sequence[Path], output: Output, end: int | None) -> None:
        if not segments:
            raise OutputError("no segment holds a frame; the source has none that can be decoded")
        self._segments, self._output = segments, output
        self.times: list[int] = []
        extradata: bytes | None = None
        delay = 0
        for path in segments:
            with av.open(os.fspath(path)) as container:
                stream = container.streams.video[0]
                mine = bytes(stream.codec_context.extradata or b"")
                if extradata not in (None, mine):
                    raise OutputError(f"{path.name} was encoded with other settings; start again with --restart")
                extradata = mine
                times = [self._time(packet) for packet in container.demux(stream) if packet.size]
            ordered = sorted(times)
            delay = max([delay, *(index - bisect_left(ordered, time) for index, time in enumerate(times))])
            self.times += times
        self.times.sort()
        steps = [after - before for before, after in pairwise(self.times)]
        if any(step <= 0 for step in steps):
            raise OutputError("two frames of the segments have the same time; start again with --restart")
        # Frames that are shown late are decoded early: the first times lie before the first frame.
        step = min(steps, default=1)
        self._decode_times = [self.times[0] - (delay - i) * step for i in range(delay)] + self.times
        usual = max(1, round(1 / (output.rate * output.time_base)))
        last = usual if end is None else end - self.times[-1]
        # What a file says of its end may be of its sound, or nothing at all.
        if not 0 < last <= 2 * max([usual, *steps[-1:]]):
            last = usual
        self.duration = self.times[-1] - self.times[0] + last
        self._shown = dict(zip(self.times, [*steps, last], strict=True))

    def add_to(self, out: Any, source: Source, main: Any, container: str) -> Any:
        """The stream in the output, with all that the source says of its own."""
        with av.open(os.fspath(self._segments[0])) as first:
            stream = out.add_stream_from_template(first.streams.video[0], opaque=True)
        stream.time_base = self._output.time_base
        context = stream.codec_context
        tag(context, self._output)
        context.sample_aspect_ratio, context.framerate = self._output.sar, self._output.rate
        if container in ("mp4", "mov") and context.name == "hevc":
            context.codec_tag = "hvc1"  # the only one that Apple's players take
        if source.info.display is not None and container in _TURNS:
            stream.set_display_matrix(source.info.display)
        stream.metadata.update(_kept(main.metadata, _STREAM_KEYS))
        stream.disposition = main.disposition
        return stream

    def packets(self, stream: Any, shift: int) -> Iterator[tuple[Fraction, Any]]:
        """Packets in the order of decoding, each with its place in time."""
        times = iter(self._decode_times)
        for path in self._segments:
            with av.open(os.fspath(path)) as container:
                for packet in container.demux(container.streams.video[0]):
                    if not packet.size:
                        continue
                    time = self._time(packet)
                    packet.duration = self._shown[time]
                    packet.pts, packet.dts = time - shift, next(times) - shift
                    packet.stream, packet.time_base = stream, self._output.time_base
                    yield packet.dts * self._output.time_base, packet

    def _time(self, packet: Any) -> int:
        """The time of a packet in ticks of the source; NUT counts in a fraction of them."""
        time = packet.pts * packet.time_base / self._output.time_base
        if time.denominator != 1:
            raise OutputError("a segment has times of another source; start again with --restart")
        return int(time) - ORIGIN


class _Copies:
    """The other streams of the source: those that fit are added to the output, the rest is noted."""

    def __init__(self, opened: Any, main: Any, out: Any, container: str, notes: list[str], start_s: Fraction) -> None:
        self._opened, self._notes = opened, notes
        self.refused = 0
        self._streams: dict[int, _Copied] = {}
        for stream, reason in _others(opened, main, container):
            if reason is not None:
                continue
            if stream.type == "attachment" or _attached(stream, container):
                _attach(out, opened, stream)
            elif stream.type != "data":  # a timecode is written anew, from the metadata of the video
                copy = out.add_stream_from_template(stream, opaque=True)
                copy.metadata.update(_kept(stream.metadata, _STREAM_KEYS))
                copy.disposition = stream.disposition
                self._streams[stream.index] = _Copied(copy, stream.time_base, _ticks(start_s, stream.time_base))

    def packets(self) -> Iterator[tuple[Fraction, Any]]:
        """Their packets in the order of the file, each with its place in time."""
        if not self._streams:
            return
        wanted = [stream for stream in self._opened.streams if stream.index in self._streams]
        at = Fraction(0)
        packets = self._opened.demux(wanted)
        while True:
            try:
                packet = next(packets, None)
            except (*FFMPEG_ERRORS, IndexError):  # PyAV does not know streams that begin in the middle
                self._notes.append("the source cannot be read to its end: other streams end there")
                return
            if packet is None:
                return
            if not packet.size:
                continue
            copied = self._streams[packet.stream_index]
            if copied.moved(packet):
                note = f"stream {packet.stream_index}: timestamps go back and were moved behind what came before"
                if note not in self._notes:
                    self._notes.append(note)
            if packet.dts is not None:
                at = packet.dts * copied.time_base
            packet.stream = copied.stream
            yield at, packet


@dataclass
class _Copied:
    """A stream that is copied: its times begin with the file, and never go back."""

    stream: Any
    time_base: Fraction
    shift: int
    last: int | None = field(default=None)
    end: int = 0

    def moved(self, packet: Any) -> bool:
        """Set the times of a packet; whether they had to be moved against those of the stream."""
        moved = False
        if packet.dts is not None:
            now = packet.dts - self.shift
            if self.last is not None and now < self.last:
                # As for the video: another recording begins.
                self.shift += now - max(self.end, self.last + 1)
                now, moved = packet.dts - self.shift, True
            self.last, self.end = now, now + (packet.duration or 0)
            packet.dts = now
        if packet.pts is not None:
            packet.pts -= self.shift
        return moved


def _losses(source: Source, opened: Any, main: Any, container: str, codec: str) -> list[str]:
    """What a container and an encoder cannot hold of a source, each with what can."""
    info = source.info
    lost = [reason for _, reason in _others(opened, main, container) if reason is not None]
    if opened.chapters() and container not in _CHAPTERS:
        lost.append(f"chapters: {container} has none; write .mkv")
    if info.display is not None and info.display != _UPRIGHT and container not in _TURNS:
        lost.append(f"the rotation of {info.rotation} degrees: {container} has none; write .mp4 or .mkv")
    # Matroska can say it as well, but PyAV does not let it.
    if info.sar != 1 and container in ("matroska", "webm") and not any(name in codec for name in _TELL_SHAPE):
        shape = f"{info.sar.numerator}:{info.sar.denominator}"
        lost.append(f"the shape of pixels {shape}: {container} cannot say it; take --codec libx264")
    if info.hdr is not None and not holds_hdr(codec):
        lost.append(f"mastering display and light levels: {codec} writes none; take --codec libx265")
    return lost


def _others(opened: Any, main: Any, container: str) -> list[tuple[Any, str | None]]:
    """Every stream but the video, each with what is lost and why, or None if it can be kept."""
    return [(stream, _why_lost(stream, opened, container)) for stream in opened.streams if stream.index != main.index]


def _why_lost(stream: Any, opened: Any, container: str) -> str | None:
    codec = stream.codec_context.codec.canonical_name if stream.codec_context is not None else "unknown"
    name = f"stream {stream.index} ({stream.type}, {codec})"
    if stream.type == "attachment":
        file = stream.metadata.get("filename", "without a name")
        return None if container == "matroska" else f"attachment {file}: {container} has none; write .mkv"
    if stream.type == "data":
        if container in ("mp4", "mov") and "timecode" in opened.streams.video[0].metadata:
            return None
        return f"{name}: data is not copied"
    if _attached(stream, container):
        return None
    if stream.codec_context is None:
        return f"{name}: its coding is not known"
    try:
        with av.open(io.BytesIO(), "w", format=container) as trial:
            trial.add_stream_from_template(stream, opaque=True)
            trial.start_encoding()
    except (*FFMPEG_ERRORS, ValueError):
        return f"{name}: {container} cannot hold it; write .mkv"
    return None


def _attached(stream: Any, container: str) -> bool:
    """Whether a stream is a cover picture that goes into Matroska as an attachment."""
    attached = av.stream.Disposition.attached_pic
    return container == "matroska" and stream.type == "video" and bool(stream.disposition & attached)


def _attach(out: Any, opened: Any, stream: Any) -> None:
    if stream.type == "attachment":
        out.add_stream_from_template(stream)
        return
    packet = next((packet for packet in opened.demux(stream) if packet.size), None)
    opened.seek(0)
    if packet is not None:
        kind = {"mjpeg": "jpeg"}.get(stream.codec_context.name, stream.codec_context.name)
        name = stream.metadata.get("filename", f"cover.{kind.replace('jpeg', 'jpg')}")
        out.add_attachment(name, stream.metadata.get("mimetype", f"image/{kind}"), bytes(packet))


def _copy_chapters(opened: Any, out: Any, container: str, start_s: Fraction) -> None:
    chapters = opened.chapters()
    if chapters and container in _CHAPTERS:
        for chapter in chapters:
            shift = _ticks(start_s, chapter["time_base"])
            chapter["start"], chapter["end"] = chapter["start"] - shift, chapter["end"] - shift
        out.set_chapters(chapters)


def _kept(metadata: dict[str, str], dropped: frozenset[str]) -> dict[str, str]:
    return {
        key: value
        for key, value in metadata.items()
        if key.lower() not in dropped and not key.startswith(("_STATISTICS", "BPS-", "DURATION-", "NUMBER_OF"))
    }


def _ticks(seconds: Fraction, time_base: Fraction) -> int:
    return round(seconds / time_base)


def _options(container: str, opened: Any, output: Output) -> dict[str, str]:
    if container not in ("mp4", "mov"):
        return {}
    # In these ticks an MP4 says where each stream begins; by default they are milliseconds.
    rates = [stream.codec_context.sample_rate for stream in opened.streams.audio if stream.codec_context is not None]
    own = output.time_base.denominator
    ticks = next((ticks for ticks in (lcm(own, *(rate or 1 for rate in rates)), own) if ticks <= _MOST_TICKS), 1000)
    # The index first, so that a player on the network can begin.
    return {"movflags": "+faststart", "movie_timescale": str(ticks)}
