"""Source: a video file as frames with the timestamps and colours that it has, however odd or damaged it is."""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import av.error
import numpy as np
from av.codec.hwaccel import HWAccel
from av.sidedata.sidedata import Type
from numpy.typing import NDArray

from srgan_fast.errors import InputError
from srgan_fast.image import MAX_PIXELS
from srgan_fast.video.colour import FOREIGN, Colour, Matrix
from srgan_fast.video.planes import colour_of, planes_of, siting_of

# Errors of FFmpeg are of one root, but for those that are OSError, EOFError or the like as well.
FFMPEG_ERRORS = (av.error.FFmpegError,)
_MICROSECONDS = 1_000_000
# Demuxers of lists and scripts, which have FFmpeg read other files, or the network.
_ELSEWHERE = frozenset({"hls", "dash", "concat", "imf", "sdp", "rtsp", "avisynth", "vapoursynth"})
# Demuxers that tell the length of what a whole file would have; the others measure what is there.
_TELL_LENGTH = ("matroska", "flv", "asf")
# Those in which a packet of H.264 or HEVC is a frame.
_ONE_EACH = ("matroska", "mov")
_PATIENCE = 16  # errors of the demuxer in a row before the file counts as at its end
_CUT_SHORT_S = 0.3


@dataclass(frozen=True)
class Hdr:
    """Static metadata of HDR10.

    Units:   `mastering` is green x, y, blue x, y, red x, y, white x, y in 0.00002, and the largest and smallest
             luminance in 0.0001 cd/m2; `content` is MaxCLL and MaxFALL in cd/m2
    Source:  SMPTE ST 2086, CTA-861.3
    """

    mastering: tuple[int, ...] | None = None
    content: tuple[int, int] | None = None


@dataclass(frozen=True)
class Info:
    """What a file says of its video.

    Units:   `rotation` in degrees counterclockwise, as it is to be shown; `display` the matrix that says so, with
             mirroring; `start_s` where the file begins, never before zero; `end` where the last frame ends, in ticks;
             `frames`, `end` and `duration_s` as the file says, None if it does not
    """

    width: int
    height: int
    sar: Fraction
    rotation: int
    display: tuple[int, ...] | None
    rate: Fraction | None
    time_base: Fraction
    frames: int | None
    duration_s: float | None
    start_s: Fraction
    end: int | None
    colour: Colour
    hdr: Hdr | None
    interlaced: bool
    codec: str
    container: str


@dataclass(frozen=True)
class Frame:
    """One frame: planes as `Colour` describes them, and its time in the source's time base."""

    planes: tuple[NDArray[Any], ...]
    pts: int
    colour: Colour


@dataclass
class _Reading:
    """One pass over the packets of the video: what went wrong, and how far it got."""

    errors: int = 0
    end: int | None = None  # of the video, in ticks
    end_s: float = 0.0  # of any stream
    packets: int = 0
    ended: bool = False
    start: int | None = None  # what fails before it is not of this part

    def failed(self, packet: Any) -> None:
        """Count a packet that cannot be used."""
        if self.start is None or packet.pts is None or packet.pts >= self.start:
            self.errors += 1


@dataclass
class _Clock:
    """Strictly increasing timestamps: those of the file, moved only where they go back or are missing."""

    step: int
    last: int | None = None
    offset: int = 0
    notes: list[str] = field(default_factory=list)

    def __call__(self, pts: int | None) -> int:
        if pts is None:
            self.notes.append("timestamps are missing: made from the frame rate")
            now = 0 if self.last is None else self.last + self.step
        else:
            now = pts + self.offset
        if self.last is not None and now <= self.last:
            if self.last - now > 2 * self.step:
                # Another recording begins: the rest of the file follows what came before.
                self.notes.append("timestamps go back: what follows is moved behind what came before")
                self.offset += self.last + self.step - now
                now = self.last + self.step
            else:
                self.notes.append("timestamps repeat or go back by a frame: such frames are moved by a tick")
                now = self.last + 1
        self.last = now
        return now


class Source:
    """The video of a file: what it is, and its frames.

    `notes` says what was odd, `damaged` counts frames and packets that were corrupt or are missing, in what was read.
    A file may be read from several threads, with a `frames` each. With `hardware` NVDEC decodes, where there is one.

    Raises:  InputError in one line for what is not a video, or holds no frame that can be decoded
    """

    def __init__(self, path: Path, *, matrix: Matrix | None = None, hardware: bool = False) -> None:
        self.path = Path(path)
        self._hardware = hardware
        self.notes: list[str] = []
        self._matrix = matrix
        self._errors = 0
        self._truncated = 0
        _refuse(self.path)
        with self.opened() as (container, stream):
            self.info = self._probe(container, stream)

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing stays open between reads."""

    @property
    def damaged(self) -> int:
        """Frames and packets that were corrupt in what was read, and frames that the file says it has but lacks."""
        return self._errors + self._truncated

    @property
    def missing(self) -> int:
        """Frames that the file says it has but lacks, as far as it was read."""
        return self._truncated

    def note(self, text: str) -> None:
        """Add to the notes what is not there yet."""
        if text not in self.notes:
            self.notes.append(text)

    def keyframes(self) -> list[int]:
        """Timestamps from which `frames` can start, in order; [] where the file cannot be cut, as AVI, which has none.

        Cost:    reads the file, decodes nothing
        """
        return self._keyframes

    @cached_property
    def _keyframes(self) -> list[int]:
        if self.info.container == "avi":
            return []
        keys: list[int] = []
        seen: set[int] = set()
        last = None
        with self.opened() as (container, stream), closing(self._packets(container, stream, _Reading())) as packets:
            for packet in packets:
                if packet.size == 0 or packet.is_discard:
                    continue
                back = last is not None and packet.dts is not None and packet.dts < last
                if packet.pts is None or packet.pts in seen or back:
                    return []
                last = packet.dts if packet.dts is not None else last
                seen.add(packet.pts)
                if packet.is_keyframe:
                    keys.append(packet.pts)
        return sorted(keys) if len(keys) > 1 else []

    def frames(self, start: int | None = None, stop: int | None = None) -> Generator[Frame, None, None]:
        """Frames with start <= pts < stop, in order and each once; `start` and `stop` are of `keyframes`, or None.

        Raises:  InputError if there is none in the whole file
        """
        count = 0
        for back_s in _ATTEMPTS if start is not None else (None,):
            reading, clock = _Reading(start=start), _Clock(self._step)
            with self.opened() as (container, stream):
                if start is not None and back_s is not None and not _sought(container, stream, start, back_s):
                    continue
                first = True
                with closing(self._decoded(container, stream, reading)) as decoded:
                    for frame in decoded:
                        pts = clock(self._time_of(frame))
                        if first and start is not None and back_s is not None and pts > start:
                            break  # the seek went too far, as it does in MPEG-TS
                        first = False
                        if start is not None and pts < start:
                            continue
                        if stop is not None and pts >= stop:
                            break
                        reading.errors += bool(frame.is_corrupt)
                        count += 1
                        yield self._frame(frame, pts)
            if not (first and back_s is not None):
                break
        if reading.ended and stop is None:
            self._check_end(reading, count if start is None else None)
        self._errors += reading.errors
        if reading.errors:
            self.note("some frames are damaged")
        for text in clock.notes:
            self.note(text)
        if start is None and stop is None and count == 0:
            raise InputError(f"expected a video, got no frame that can be decoded: {self.path}; fetch it again")

    def _frame(self, frame: Any, pts: int) -> Frame:
        if frame.interlaced_frame:
            self.note("interlaced: frames are taken as they are; deinterlace first for a better picture")
        colour = colour_of(frame, self.info.codec, self.info.colour.siting, self._matrix, self.note)
        return Frame(planes_of(frame, (self.info.width, self.info.height), self.note), pts, colour)

    @property
    def _step(self) -> int:
        rate = self.info.rate or Fraction(25)
        return max(1, round(1 / (rate * self.info.time_base)))

    def _time_of(self, frame: Any) -> int | None:
        pts = frame.pts if frame.pts is not None else frame.dts
        if pts is None or frame.time_base in (None, self.info.time_base):
            return pts
        return round(pts * frame.time_base / self.info.time_base)

    @contextmanager
    def opened(self) -> Iterator[tuple[Any, Any]]:
        """PyAV's container and its video, for the time of a block.

        Raises:  InputError for what is not a video, is only a list of others, or is too large
        """
        try:
            container = self._container()
        except (*FFMPEG_ERRORS, OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"expected a video, got a damaged or another file: {self.path} ({reason})") from error
        with container:
            if _ELSEWHERE & set(container.format.name.split(",")):
                raise InputError(f"expected a video, got a list of others: {self.path}; name the file that has it")
            if container.format.name.endswith("_pipe") or container.format.name == "image2":
                raise InputError(f"expected a video, got a picture: {self.path}; name it as one, such as .png")
            stream = main_stream(container)
            if stream is None:
                raise InputError(f"expected a video, got a file without one: {self.path}; name a file that has one")
            if stream.codec_context is None:
                raise InputError(f"no decoder for the video of {self.path}; convert it to H.264 first")
            width, height = stream.codec_context.width, stream.codec_context.height
            if width * height > MAX_PIXELS:
                most = f"{MAX_PIXELS // 10**6} million pixels a frame"
                raise InputError(f"expected at most {most}, got {width}x{height} in {self.path}; cut or shrink it")
            # Threads over frames would hide the errors of damaged ones.
            stream.thread_type = "SLICE"
            yield container, stream

    def _container(self) -> Any:
        # "file:" because a name with a colon would be taken for a protocol.
        name = f"file:{os.fspath(self.path)}"
        if self._hardware:
            try:
                accelerated = HWAccel("cuda", allow_software_fallback=True)
                return av.open(name, metadata_errors="replace", hwaccel=accelerated)
            except (*FFMPEG_ERRORS, OSError, RuntimeError) as error:
                self._hardware = False
                self.note(f"no NVDEC here ({getattr(error, 'strerror', None) or error}): decoded on the CPU")
        return av.open(name, metadata_errors="replace")

    def _packets(self, container: Any, stream: Any, reading: _Reading) -> Generator[Any, None, None]:
        """Packets of the video, to the end of what is there."""
        failures = 0
        while failures < _PATIENCE:
            try:
                for packet in container.demux():
                    failures = 0
                    ours = packet.stream.index == stream.index  # the index of a packet that flushes means nothing
                    if packet.pts is not None and packet.time_base:
                        end = packet.pts + (packet.duration or 0)
                        reading.end_s = max(reading.end_s, float(end * packet.time_base))
                        if ours and packet.duration:
                            reading.end = end if reading.end is None else max(reading.end, end)
                    if ours:
                        reading.packets += packet.size > 0 and not packet.is_discard
                        if packet.is_corrupt:
                            reading.failed(packet)
                        yield packet
                break
            except FFMPEG_ERRORS:
                failures += 1
                reading.errors += 1
            except IndexError:
                break  # PyAV does not know streams that begin in the middle of the file
        reading.ended = True

    def _decoded(self, container: Any, stream: Any, reading: _Reading) -> Generator[Any, None, None]:
        with closing(self._packets(container, stream, reading)) as packets:
            for packet in packets:
                try:
                    frames = packet.decode()
                except FFMPEG_ERRORS:
                    reading.failed(packet)
                    continue
                yield from frames

    def _probe(self, container: Any, stream: Any) -> Info:
        first = None
        with closing(self._decoded(container, stream, _Reading())) as decoded:
            first = next(decoded, None)
        if first is None:
            raise InputError(f"expected a video, got no frame that can be decoded: {self.path}; fetch it again")
        if self._matrix is None and int(first.colorspace) in FOREIGN:
            raise InputError(
                f"expected a video in BT.601, BT.709 or BT.2020, got {FOREIGN[int(first.colorspace)]}: {self.path}; "
                "convert it first, or say which --matrix it is"
            )
        context = stream.codec_context
        codec = context.codec.canonical_name
        siting = siting_of(first, codec, self.note)
        rate = stream.average_rate or stream.guessed_rate or None
        if first.pts is None:
            # A stream without timestamps: its average is made up, what the codec says is not.
            rate = context.framerate or stream.guessed_rate or rate
        frames = self._counted(container, stream)
        duration = None
        if stream.duration is not None:
            duration = float(stream.duration * stream.time_base)
        elif container.duration is not None:
            duration = container.duration / _MICROSECONDS
        display = _side_data(first, Type.DISPLAYMATRIX)
        for kind, name in ((Type.DYNAMIC_HDR_PLUS, "HDR10+"), (Type.DOVI_METADATA, "Dolby Vision")):
            if _side_data(first, kind) is not None:
                self.note(f"the dynamic metadata of {name} is dropped")
        return Info(
            width=first.width,
            height=first.height,
            sar=stream.sample_aspect_ratio or Fraction(1),
            rotation=int(first.rotation),
            display=None if display is None else tuple(int(x) for x in np.frombuffer(display, np.int32)),
            rate=rate,
            time_base=stream.time_base,
            frames=frames,
            duration_s=duration,
            start_s=_start(container),
            end=_end(stream),
            colour=colour_of(first, codec, siting, self._matrix, self.note),
            hdr=_hdr(first),
            interlaced=bool(first.interlaced_frame),
            codec=codec,
            container=container.format.name,
        )

    def _counted(self, container: Any, stream: Any) -> int | None:
        """How many frames the file says it has; those of an MP4 that lie beyond its end are missing."""
        if "mp4" not in container.format.name:
            return stream.frames or None
        entries = [entry for entry in stream.index_entries if not entry.is_discard]
        size = self.path.stat().st_size
        self._miss(sum(entry.pos + entry.size > size for entry in entries))
        return len(entries) or stream.frames or None

    def _miss(self, count: int) -> None:
        if count > self._truncated:
            self._truncated = count
            self.note(f"the file is cut short: about {count} frames are missing at its end")

    def _check_end(self, reading: _Reading, frames: int | None) -> None:
        """Compare what a file has with what it says; `frames` is how many came of the whole of it."""
        container, codec = self.info.container, self.info.codec
        if frames is not None:
            if container == "avi" and self.info.frames:
                self._miss(self.info.frames - reading.packets)
            if codec in ("h264", "hevc") and not self.info.interlaced and container.startswith(_ONE_EACH):
                reading.errors = max(reading.errors, reading.packets - frames)
        if not container.startswith(_TELL_LENGTH):
            return
        if self.info.end is not None and reading.end is not None:
            short = self.info.end - reading.end
            if 2 * short > self._step:
                self._miss(max(1, round(short / self._step)))
        elif self._length_s is not None and self._length_s - reading.end_s > _CUT_SHORT_S:
            self._miss(max(1, round((self._length_s - reading.end_s) * (self.info.rate or 25))))

    @cached_property
    def _length_s(self) -> float | None:
        with self.opened() as (container, _):
            return None if container.duration is None else container.duration / _MICROSECONDS


# How far before a keyframe to seek, in seconds, until a frame at or before it comes out; at last from the beginning.
_ATTEMPTS = (0, 1, 4, 16, 64, None)


def main_stream(container: Any) -> Any:
    """The video of a file that is no cover picture; None if there is none."""
    attached = av.stream.Disposition.attached_pic
    return next((stream for stream in container.streams.video if not stream.disposition & attached), None)


def _refuse(path: Path) -> None:
    try:
        if path.is_dir():
            raise InputError(f"expected a video file, got a folder: {path}; name a file in it")
        if path.exists() and not path.is_file():
            raise InputError(f"expected a video file, got a device or a pipe: {path}; save the video to a file")
        if path.stat().st_size == 0:
            raise InputError(f"expected a video, got an empty file: {path}; fetch or save it again")
        with path.open("rb"):
            pass
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check the name and its permissions") from error
    except InputError:
        raise
    except ValueError as error:  # a NUL in the name
        raise InputError(f"cannot read {str(path)!r}: {error}; check the name") from error


def _start(container: Any) -> Fraction:
    """Where a file begins, to the tick: its own answer is in microseconds."""
    attached = av.stream.Disposition.attached_pic
    begins = [
        stream.start_time * stream.time_base
        for stream in container.streams
        if stream.start_time is not None and stream.time_base and not stream.disposition & attached
    ]
    return max(Fraction(0), min(begins, default=Fraction(0)))


def _end(stream: Any) -> int | None:
    """Where the last frame ends, in ticks; Matroska has it as a tag."""
    if stream.duration is not None:
        return (stream.start_time or 0) + stream.duration
    match = re.fullmatch(r"(\d+):(\d\d):(\d\d\.\d+)", stream.metadata.get("DURATION", ""))
    if match is None:
        return None
    return round((int(match[1]) * 3600 + int(match[2]) * 60 + Fraction(match[3])) / stream.time_base)


def _sought(container: Any, stream: Any, start: int, back_s: int) -> bool:
    try:
        container.seek(start - round(back_s / stream.time_base), stream=stream, backward=True)
    except FFMPEG_ERRORS:
        return False
    return True


def _side_data(frame: Any, kind: Any) -> bytes | None:
    return next((bytes(data) for data in frame.side_data if data.type == kind), None)


def _hdr(frame: Any) -> Hdr | None:
    """AVMasteringDisplayMetadata and AVContentLightMetadata, as FFmpeg lays them out in memory."""
    mastering = content = None
    data = _side_data(frame, Type.MASTERING_DISPLAY_METADATA)
    if data is not None:
        numbers = np.frombuffer(data, np.int32)
        values = [Fraction(int(n), int(d)) if d else Fraction(0) for n, d in numbers[:20].reshape(10, 2)]
        red, green, blue, white = (values[i : i + 2] for i in (0, 2, 4, 6))
        low, high = values[8:10]
        if numbers[20] and numbers[21]:
            chroma = [round(50_000 * value) for value in (*green, *blue, *red, *white)]
            mastering = (*chroma, round(10_000 * high), round(10_000 * low))
    data = _side_data(frame, Type.CONTENT_LIGHT_LEVEL)
    if data is not None:
        most, average = np.frombuffer(data, np.uint32)[:2]
        content = (int(most), int(average))
    return None if mastering is None and content is None else Hdr(mastering, content)
