"""The kinds of video that must go through, and those that must be refused: one line each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from clips import (
    BT601,
    BT709,
    BT2020_PQ,
    FRAMES,
    MASTER,
    Sound,
    after,
    cover,
    cut,
    drawn,
    flipped,
    make,
    sound_only,
    subtitled,
)

Make = Callable[[Path], Path]


@dataclass(frozen=True)
class Kind:
    """A clip: `target` is the suffix of the output, `frames` how many come (None: as many as can be read).

    `note` and `dropped` are what the notes of the source and of the output must hold; `noisy` is a coding so lossy that
    its colours are not compared.
    """

    name: str
    make: Make
    target: str = ".mp4"
    frames: int | None = FRAMES
    note: str = ""
    dropped: str = ""
    damaged: bool = False
    noisy: bool = False


def _kind(name: str, suffix: str = ".mp4", target: str = "", **more: object) -> Kind:
    """A kind by the arguments of `make`, and those of Kind."""
    own = {key: more.pop(key) for key in ("frames", "note", "dropped", "damaged", "noisy") if key in more}
    return Kind(name, lambda folder: make(folder / f"in{suffix}", **more), target or suffix, **own)  # type: ignore[arg-type]


_TURNED = [0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30]
_MIRRORED = [-65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30]
_UNEVEN = [0, 1, 2, 5, 6, 11, 12, 13, 17, 19, 20, 30]
_HUNDREDTHS = Fraction(1, 100)
_HDR10 = {"x265-params": f"log-level=none:keyint=6:bframes=2:pools=1:max-cll=1000,400:master-display={MASTER}"}


def _ts(folder: Path, name: str, **more: object) -> Path:
    return make(folder / f"{name}.ts", sounds=[Sound("mp2")], **more)  # type: ignore[arg-type]


def _long(folder: Path, name: str, **more: object) -> Path:
    """Long enough to be cut short or damaged in its middle."""
    return make(folder / name, times=range(50), sounds=[Sound("mp2", seconds=2.0)], **more)  # type: ignore[arg-type]


QUICK = (
    _kind("plain", sounds=[Sound()]),
    _kind("hdr10", codec="libx265", pixels="yuv420p10le", colours=BT2020_PQ, options=_HDR10),
    _kind("uneven times", times=_UNEVEN, time_base=_HUNDREDTHS, sounds=[Sound()]),
    _kind("open gop", options={"x264-params": "open-gop=1:keyint=6:bframes=2:b-adapt=0"}),
    _kind("edit list", times=range(-5, 12), sounds=[Sound(begin_s=-0.2, seconds=0.6)]),
    _kind("turned, wide pixels", display=_TURNED, sar=Fraction(4, 3)),
    Kind(
        "two sounds, two texts, chapters, font",
        lambda f: make(f / "in.mkv", sounds=[Sound(), Sound("flac", language="fra")], more=subtitled(f)),
        ".mkv",
    ),
    Kind(
        "the same, to mp4",
        lambda f: make(f / "in.mkv", sounds=[Sound(), Sound("flac", language="fra")], more=subtitled(f)),
        dropped="font.ttf",
    ),
    _kind("odd size", ".mkv", codec="ffv1", size=(61, 47)),
    _kind("full range", full=True, colours=BT709),
    _kind("grey", ".mkv", codec="ffv1", pixels="gray"),
    _kind("transport stream", ".ts", sounds=[Sound("mp2")]),
    _kind("no timestamps", ".h264", ".mkv", note="timestamps are missing"),
    Kind(
        "timestamps go back",
        lambda f: after(f / "in.ts", _ts(f, "one"), _ts(f, "two")),
        ".mkv",
        frames=2 * FRAMES,
        note="timestamps go back",
    ),
    Kind(
        "size changes",
        lambda f: after(f / "in.h264", make(f / "a.h264"), make(f / "b.h264", size=(96, 64))),
        ".mkv",
        frames=2 * FRAMES,
        note="the size changes to 96x64",
    ),
    Kind(
        "cut short mp4",
        lambda f: cut(f / "in.mp4", _long(f, "whole.mp4", muxing={"movflags": "+faststart"}), 0.6),
        frames=None,
        note="cut short",
        damaged=True,
    ),
    Kind("bytes changed", lambda f: flipped(f / "in.mkv", _long(f, "whole.mkv")), ".mkv", frames=None, damaged=True),
)

MORE = (
    _kind("hevc", codec="libx265"),
    _kind("vp9", ".webm", codec="libvpx-vp9", sounds=[Sound("libopus")]),
    _kind("vp9 to mp4", ".webm", ".mp4", codec="libvpx-vp9", sounds=[Sound("libopus")]),
    _kind("av1", ".mkv", codec="libsvtav1"),
    _kind("mpeg-4 in avi", ".avi", ".mkv", codec="mpeg4", options={"bf": "2", "q:v": "2"}, noisy=True),
    _kind("mpeg-2", ".ts", codec="mpeg2video", options={"b": "4M"}, noisy=True),
    _kind("mpeg-1", ".mpg", ".mkv", codec="mpeg1video", options={"b": "4M"}, noisy=True),
    _kind("mjpeg", ".avi", ".mkv", codec="mjpeg", pixels="yuvj420p", noisy=True),
    _kind("ffv1 10 bit", ".mkv", codec="ffv1", pixels="yuv422p10le"),
    _kind("ffv1 16 bit", ".mkv", codec="ffv1", pixels="yuv444p16le"),
    _kind("prores, timecode", ".mov", codec="prores_ks", pixels="yuv422p10le", metadata={"timecode": "01:00:00:00"}),
    _kind(
        "gif",
        ".gif",
        ".mp4",
        codec="gif",
        pixels="rgb8",
        note="transparency",
        noisy=True,
        times=range(0, 48, 4),
        time_base=_HUNDREDTHS,
    ),
    _kind("rgb", ".mkv", codec="libx264rgb", pixels="rgb24", options={"preset": "ultrafast", "qp": "2"}),
    _kind("rgb planar", ".avi", ".mkv", codec="utvideo", pixels="gbrp"),
    _kind("rgb 10 bit", ".mkv", codec="ffv1", pixels="gbrp10le"),
    _kind("packed", ".avi", ".mkv", codec="rawvideo", pixels="yuyv422"),
    _kind("semi-planar", ".nut", ".mkv", codec="rawvideo", pixels="nv12"),
    _kind("transparent", ".mkv", codec="ffv1", pixels="yuva420p", note="transparency is dropped"),
    _kind("grey h264", pixels="gray"),
    _kind("grey 10 bit", ".mkv", codec="ffv1", pixels="gray10le"),
    _kind("4:2:2", ".mkv", pixels="yuv422p"),
    _kind("4:4:4, odd", ".mkv", pixels="yuv444p", size=(61, 47)),
    _kind("4:1:1", ".avi", ".mkv", codec="rawvideo", pixels="yuv411p", note="yuv411p is read as"),
    _kind("bt601", colours=BT601),
    _kind("untagged hd", size=(1280, 720), times=range(2), frames=2),
    _kind("chroma top left", options={"chroma_sample_location": "topleft"}),
    _kind("chroma in the centre", options={"chroma_sample_location": "center"}),
    _kind("mirrored", display=_MIRRORED),
    _kind("23.976", rate=Fraction(24000, 1001), sounds=[Sound()]),
    _kind(
        "23.976 to matroska", ".mp4", ".mkv", rate=Fraction(24000, 1001), sounds=[Sound()], dropped="rounds timestamps"
    ),
    _kind("uneven times, matroska", ".mkv", times=_UNEVEN, time_base=_HUNDREDTHS, sounds=[Sound("libopus")]),
    _kind("sound late", sounds=[Sound(begin_s=0.3)]),
    _kind("sound longer", sounds=[Sound(seconds=1.5)]),
    _kind("sound longer, matroska", ".mkv", sounds=[Sound("flac", seconds=1.5)]),
    _kind("video late", times=range(10, 22), sounds=[Sound(seconds=1.0)]),
    _kind("video late, matroska", ".mkv", times=range(10, 22), sounds=[Sound("libopus", seconds=1.0)]),
    _kind("transport stream to mp4", ".ts", ".mp4", sounds=[Sound("mp2")]),
    _kind("interlaced", interlaced=True, note="interlaced"),
    _kind("one frame", times=[0], frames=1),
    _kind("cover picture beside the video", more=cover, sounds=[Sound()]),
    _kind("flv", ".flv", ".mp4", sounds=[Sound()]),
    _kind("far in time", ".mkv", times=range(90_000, 90_012)),
    Kind("cut short matroska", lambda f: cut(f / "in.mkv", _long(f, "whole.mkv"), 0.6), ".mkv", None, "", "", True),
    Kind("cut short ts", lambda f: cut(f / "in.ts", _long(f, "whole.ts"), 0.61), ".ts", None),
    Kind(
        "cut short avi",
        lambda f: cut(f / "in.avi", _long(f, "whole.avi", codec="mjpeg", pixels="yuvj420p"), 0.6),
        ".mkv",
        None,
        "",
        "",
        True,
        True,
    ),
    Kind("bytes changed, mp4", lambda f: flipped(f / "in.mp4", _long(f, "whole.mp4")), ".mp4", None, "", "", True),
    Kind("bytes changed, ts", lambda f: flipped(f / "in.ts", _long(f, "whole.ts")), ".mkv", None, "", "", True),
)


def _written(name: str, data: bytes) -> Make:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return write


def _picture(folder: Path) -> Path:
    from PIL import Image

    Image.fromarray(drawn(0, "yuv420p", 64, 48).to_ndarray(format="rgb24")).save(folder / "in.png")
    return folder / "in.png"


REFUSED: dict[str, tuple[Make, str]] = {
    "no index": (lambda f: cut(f / "in.mp4", make(f / "whole.mp4"), 0.6), "damaged or another file"),
    "empty": (_written("in.mp4", b""), "an empty file"),
    "noise": (_written("in.mp4", bytes(range(1, 256)) * 300), "damaged or another file|without one"),
    "text": (_written("in.mp4", b"not a video\n" * 50), "damaged or another file|without one"),
    "sound alone": (lambda f: sound_only(f / "in.m4a", "aac"), "a file without one"),
    "sound with a cover": (lambda f: sound_only(f / "in.mp3", "libmp3lame", picture=True), "a file without one"),
    "a folder": (lambda f: f, "a folder"),
    "nothing": (lambda f: f / "missing.mp4", "No such file"),
    "a picture": (_picture, "a picture"),
    "constant luminance of another kind": (lambda f: make(f / "in.mkv", colours=(14, 9, 16)), "ICtCp"),
}
