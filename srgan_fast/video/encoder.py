"""Encoder: planes and timestamps into a segment, one compressed video stream that is joined with others later."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import av.error
from numpy.typing import NDArray

from srgan_fast.errors import BackendUnavailable, OutputError, SRGANFastError, UsageError
from srgan_fast.video.colour import UNKNOWN, Colour, guess_matrix
from srgan_fast.video.planes import frame_from
from srgan_fast.video.source import Hdr, Info

# Tags for a video that does not say them, by its matrix: (matrix, primaries, transfer) of ITU-T H.273.
_TAGS = {"bt601": (6, 6, 6), "bt709": (1, 1, 1), "bt2020": (9, 9, 14)}
_PAL_PRIMARIES, _PAL_MATRIX = 5, 5
_SITINGS = {"left": "left", "centre": "center", "topleft": "topleft"}
# The encoders that write where chroma lies; for the others it goes where players suppose it.
_TELL_SITING = ("libx264", "libx265")


# Where zero lies in a segment: NUT has no negative times.
ORIGIN = 1 << 40


@dataclass(frozen=True)
class _Kind:
    """An encoder of FFmpeg: its pixel format by depth, its largest side, its options for quality and speed.

    Quality has a name, our default and the most it may be; `presets` are the names of its speeds.
    """

    formats: dict[int, str]
    largest: int
    quality: tuple[str, str, int] | None
    preset: tuple[str, str] | None
    presets: tuple[str, ...] = ()
    options: tuple[tuple[str, str], ...] = ()


_PLANAR = {8: "yuv420p", 10: "yuv420p10le"}
_NVENC = (("rc", "vbr"), ("b", "0"))
_NVENC_PRESETS = tuple(f"p{speed}" for speed in range(1, 8))
_VP9_PRESETS = tuple(map(str, range(9)))
_X26_PRESETS = (
    *("ultrafast", "superfast", "veryfast", "faster", "fast"),
    *("medium", "slow", "slower", "veryslow", "placebo"),
)
_KINDS = {
    "libx264": _Kind(_PLANAR, 16384, ("crf", "18", 51), ("preset", "medium"), _X26_PRESETS),
    "libx265": _Kind(_PLANAR, 16384, ("crf", "20", 51), ("preset", "medium"), _X26_PRESETS),
    "libsvtav1": _Kind(_PLANAR, 16384, ("crf", "26", 63), ("preset", "8"), tuple(map(str, range(14)))),
    "libvpx-vp9": _Kind(
        _PLANAR, 16384, ("crf", "24", 63), ("cpu-used", "2"), _VP9_PRESETS, (("b", "0"), ("row-mt", "1"))
    ),
    "ffv1": _Kind(_PLANAR, 32768, None, None, (), (("level", "3"),)),
    "h264_nvenc": _Kind({8: "yuv420p"}, 4096, ("cq", "19", 51), ("preset", "p5"), _NVENC_PRESETS, _NVENC),
    "hevc_nvenc": _Kind({8: "yuv420p", 10: "p010le"}, 8192, ("cq", "21", 51), ("preset", "p5"), _NVENC_PRESETS, _NVENC),
    "av1_nvenc": _Kind({8: "yuv420p", 10: "p010le"}, 8192, ("cq", "26", 51), ("preset", "p5"), _NVENC_PRESETS, _NVENC),
}
# In the order in which auto tries them; the last one is taken where no other fits, or its reason is said.
_ALIKE = ("h264_nvenc", "hevc_nvenc", "libx264", "libx265")
_FOR_WEBM = ("av1_nvenc", "libvpx-vp9")
# Players and graphics chips decode H.264 up to this, and in eight bits alone.
_LARGEST_H264 = 4096


@dataclass(frozen=True)
class Codec:
    """An encoder that can be opened here for the depth and size asked for, and its pixel format."""

    name: str
    depth: int
    pixel_format: str


@dataclass(frozen=True)
class Options:
    """What may be said of the encoder, in its own words; None is our default for it.

    `threads` change its bits: segments that are to be joined are encoded with the same number.
    """

    crf: float | None = None
    preset: str | None = None
    threads: int | None = None


@dataclass(frozen=True)
class Output:
    """The video to be written: `colour` is what `from_rgb` must give, always tagged; `codec` is the encoder's name."""

    codec: str
    width: int
    height: int
    time_base: Fraction
    rate: Fraction
    sar: Fraction
    colour: Colour
    hdr: Hdr | None


def choose(codec: str, width: int, height: int, depth: int, container: str = "mp4") -> Codec:
    """The encoder for a size in pixels and a depth of 8 or 10 bits.

    auto takes NVENC where it can be opened, HEVC above 4096 pixels a side and for more than 8 bits, H.264 else; VP9, or
    AV1 by NVENC, for webm.

    Raises:  UsageError for an unknown name, or one that cannot hold the size or depth; BackendUnavailable for one that
             cannot be opened here
    """
    if codec == "auto":
        *names, codec = _FOR_WEBM if container == "webm" else _ALIKE
        small = max(width, height) <= _LARGEST_H264 and depth == 8
        for name in names:
            kind = _KINDS[name]
            fits = max(width, height) <= kind.largest and depth in kind.formats and (small or "264" not in name)
            if fits and why_not(name, width, height, depth) is None:
                return Codec(name, depth, kind.formats[depth])
    if codec not in _KINDS:
        raise UsageError(f"expected --codec auto, {', '.join(_KINDS)}, got {codec}")
    kind = _KINDS[codec]
    if depth not in kind.formats:
        bits = " or ".join(str(bits) for bits in kind.formats)
        raise UsageError(f"{codec} has {bits} bits a channel, asked for {depth}; take --codec auto")
    if max(width, height) > kind.largest:
        raise UsageError(f"{codec} holds at most {kind.largest} pixels a side, got {width}x{height}; take --codec auto")
    reason = why_not(codec, width, height, depth)
    if reason is not None:
        cure = "take --codec auto" if "nvenc" in codec else "reinstall av"
        raise BackendUnavailable(f"{codec} cannot be opened here: {reason}; {cure}")
    return Codec(codec, depth, kind.formats[depth])


@lru_cache(maxsize=64)
def why_not(name: str, width: int, height: int, depth: int) -> str | None:
    """Why an encoder cannot be opened for a size and depth: found by opening it; None if it can."""
    try:
        context: Any = av.CodecContext.create(name, "w")
        context.width, context.height, context.pix_fmt = width, height, _KINDS[name].formats[depth]
        context.time_base, context.framerate = Fraction(1, 25), Fraction(25)
        context.options = _quiet(name)
        context.open()
    except (av.error.FFmpegError, OSError, ValueError) as error:
        if "nvenc" in name:
            return "no NVENC on this machine"
        return getattr(error, "strerror", None) or str(error)
    return None


def output_of(info: Info, scale: int, codec: Codec) -> Output:
    """What to write for a source: its own matrix, range, chroma position, shape of pixels and times, all tagged."""
    width, height = info.width * scale, info.height * scale
    colour = info.colour
    # RGB has no matrix to keep: that of its new size, in the range that players expect.
    matrix = guess_matrix(width, height) if colour.matrix == "rgb" else colour.matrix
    _, primaries, transfer = _TAGS[matrix]
    wanted = replace(
        colour,
        matrix=matrix,
        full=colour.full and colour.matrix != "rgb",
        depth=codec.depth,
        # At several times the size 4:2:0 holds all the chroma of any source, and every player knows it.
        subsampling="400" if colour.subsampling == "400" else "420",
        siting=colour.siting if codec.name in _TELL_SITING else "left",
        primaries=primaries if colour.primaries == UNKNOWN else colour.primaries,
        transfer=transfer if colour.transfer == UNKNOWN else colour.transfer,
        tagged=True,
    )
    return Output(codec.name, width, height, info.time_base, info.rate or Fraction(25), info.sar, wanted, info.hdr)


def tag(target: Any, output: Output) -> None:
    """Write the colours and the shape of pixels into a codec context or a frame."""
    colour = output.colour
    matrix = _TAGS[colour.matrix][0]
    if colour.matrix == "bt601" and colour.primaries == _PAL_PRIMARIES:
        matrix = _PAL_MATRIX
    target.colorspace, target.color_range = matrix, 2 if colour.full else 1
    target.color_primaries, target.color_trc = colour.primaries, colour.transfer


class Encoder:
    """One segment: frames in, a file with one compressed stream out, with the timestamps that it was given.

    The file has `path` as its name from the start: whoever wants it whole or not at all renames it after `close`.

    Raises:  OutputError if the file cannot be written or the encoder fails
    """

    def __init__(self, path: Path, output: Output, codec: Codec, options: Options = Options()) -> None:
        self._path, self._output, self._codec = path, output, codec
        self.frames = self._packets = 0
        self._neutral = 1 << (codec.depth - 1)
        with self._reporting():
            self._file = path.open("wb")
        try:
            # NUT keeps any time base and any timestamps, but for the muxer that would move them.
            self._container: Any = av.open(self._file, "w", format="nut", options={"avoid_negative_ts": "disabled"})
            add: Any = self._container.add_stream  # typed for sound and text as well
            self._stream = add(
                codec.name,
                rate=output.rate,
                options=self._settings(options),
                width=output.width,
                height=output.height,
                pix_fmt=codec.pixel_format,
                sample_aspect_ratio=output.sar,
            )
            self._stream.time_base = output.time_base
            self._stream.codec_context.time_base = output.time_base
            if options.threads is not None:
                self._stream.codec_context.thread_count = options.threads
            tag(self._stream.codec_context, output)
        except BaseException:
            self._file.close()
            raise

    def write(self, planes: Sequence[NDArray[Any]], pts: int) -> None:
        """Add a frame; a copy is taken. Timestamps rise strictly."""
        with self._reporting():
            frame = frame_from(planes, self._codec.pixel_format, self._neutral)
            frame.pts, frame.time_base = pts, self._output.time_base
            tag(frame, self._output)
            self._mux(self._stream.encode(frame))
        self.frames += 1

    def close(self) -> None:
        """Finish the file and bring it to the disk; without a frame it stays empty."""
        with self._reporting():
            if self.frames:
                self._mux(self._stream.encode())
                self._container.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def _mux(self, packets: Sequence[Any]) -> None:
        for packet in packets:
            # Times of decoding are made when segments are joined; those of x265 are at times later than the frame.
            packet.pts, packet.dts = packet.pts + ORIGIN, self._packets
            self._packets += 1
            self._container.mux_one(packet)

    def abort(self) -> None:
        """Remove the file, whatever state it is in."""
        self._file.close()
        self._path.unlink(missing_ok=True)

    def _settings(self, options: Options) -> dict[str, str]:
        settings = settings_of(self._codec, options)
        settings["chroma_sample_location"] = _SITINGS[self._output.colour.siting]
        hdr = self._output.hdr
        if hdr is not None and self._codec.name == "libx265":
            settings["x265-params"] += _hdr10(hdr)
        return settings

    def _reporting(self) -> _Reporting:
        return _Reporting(self._path, self._codec.name)


class _Reporting:
    """Turns errors of the system and of FFmpeg into ours."""

    def __init__(self, path: Path, codec: str) -> None:
        self._path, self._codec = path, codec

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, SRGANFastError):
            return
        if isinstance(error, OSError) and not isinstance(error, av.error.FFmpegError):
            raise OutputError(
                f"cannot write {self._path}: {error.strerror}; free some space or name another folder"
            ) from error
        if isinstance(error, (av.error.FFmpegError, ValueError)):
            reason = getattr(error, "strerror", None) or str(error)
            raise OutputError(f"{self._codec} failed on {self._path}: {reason}; try another --codec") from error


def settings_of(codec: Codec, options: Options) -> dict[str, str]:
    """What an encoder is told of quality and speed, in FFmpeg's words.

    Raises:  UsageError for an option that it does not have, or a value that it does not know
    """
    check_options(codec, options)
    kind = _KINDS[codec.name]
    settings = {**dict(kind.options), **_quiet(codec.name)}
    if kind.quality is not None:
        name, value, _ = kind.quality
        settings[name] = value if options.crf is None else f"{options.crf:g}"
    if kind.preset is not None:
        name, value = kind.preset
        settings[name] = value if options.preset is None else options.preset
    return settings


def check_options(codec: Codec, options: Options) -> None:
    """Refuse at once what the encoder would refuse, or take for something else, at the first frame.

    Raises:  UsageError for an option that it does not have, or a value that it does not know
    """
    kind = _KINDS[codec.name]
    if options.crf is not None:
        if kind.quality is None:
            raise UsageError(f"{codec.name} has no --crf; leave it out")
        if not 0 <= options.crf <= kind.quality[2]:
            raise UsageError(f"expected a --crf of {codec.name} from 0 to {kind.quality[2]}, got {options.crf:g}")
    if options.preset is not None:
        if kind.preset is None:
            raise UsageError(f"{codec.name} has no --preset; leave it out")
        if options.preset not in kind.presets:
            raise UsageError(f"expected a --preset of {codec.name} ({', '.join(kind.presets)}), got {options.preset}")


def holds_hdr(codec: str) -> bool:
    """Whether an encoder puts mastering display and light levels into the stream."""
    return codec == "libx265"


def _quiet(name: str) -> dict[str, str]:
    if name == "libsvtav1":
        os.environ.setdefault("SVT_LOG", "1")  # it prints its settings to stderr, and has no other switch
    return {"x265-params": "log-level=none"} if name == "libx265" else {}


def _hdr10(hdr: Hdr) -> str:
    text = ":hdr10=1"
    if hdr.mastering is not None:
        gx, gy, bx, by, rx, ry, wx, wy, high, low = hdr.mastering
        text += f":master-display=G({gx},{gy})B({bx},{by})R({rx},{ry})WP({wx},{wy})L({high},{low})"
    if hdr.content is not None:
        text += f":max-cll={hdr.content[0]},{hdr.content[1]}"
    return text
