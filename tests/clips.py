"""Small videos of every kind, made with PyAV: codecs, containers, times, colours, streams, and damage."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

W, H = 64, 48
FRAMES = 12
RATE = 25

# Codes of ITU-T H.273: matrix, primaries, transfer.
BT601, BT709, BT2020_PQ = (6, 6, 6), (1, 1, 1), (9, 9, 16)
MASTER = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"

os.environ.setdefault("SVT_LOG", "1")  # it prints its settings to stderr

_QUICK = {
    "libx264": {"preset": "ultrafast", "bf": "2", "b_strategy": "0", "g": "6", "sc_threshold": "0", "qp": "4"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none:keyint=6:bframes=2:b-adapt=0:qp=4:pools=1"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "10", "b": "0"},
    "libsvtav1": {"preset": "12", "crf": "10"},
}


@dataclass(frozen=True)
class Sound:
    """A tone: when it begins, how long it lasts, in what coding."""

    codec: str = "aac"
    begin_s: float = 0.0
    seconds: float = 0.5
    language: str = "eng"


def pattern(index: int, height: int, width: int, peak: int, plane: int) -> np.ndarray:
    """A soft pattern that moves, in code values that every range allows."""
    y, x = np.mgrid[0:height, 0:width]
    wave = np.sin((x + 3 * index) / (7 + plane)) * np.cos((y - index) / (5 + plane))
    return np.asarray(np.round((0.5 + 0.3 * wave) * peak), np.uint16)


def make(
    path: Path,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    *,
    size: tuple[int, int] = (W, H),
    times: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    rate: Fraction | int = RATE,
    options: dict[str, str] | None = None,
    colours: tuple[int, int, int] | None = None,
    full: bool | None = None,
    sar: Fraction | None = None,
    display: Sequence[int] | None = None,
    sounds: Iterable[Sound] = (),
    container: str | None = None,
    muxing: dict[str, str] | None = None,
    more: Callable[[Any], Callable[[], None]] | None = None,
    metadata: dict[str, str] | None = None,
    interlaced: bool = False,
) -> Path:
    """A clip; `times` are those of its frames in ticks, by default one after the other from zero."""
    time_base = time_base or 1 / Fraction(rate)
    times = range(FRAMES) if times is None else times
    with av.open(str(path), "w", format=container, options=muxing or {}) as out:
        settings = {**_QUICK.get(codec, {}), **(options or {})}
        if interlaced:
            settings["flags"] = "+ildct+ilme"
        stream = out.add_stream(codec, rate=rate, options=settings)
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        context = stream.codec_context
        context.thread_count = 1
        stream.time_base = context.time_base = time_base
        if sar is not None:
            context.sample_aspect_ratio = sar
        if colours is not None:
            context.colorspace, context.color_primaries, context.color_trc = colours
        if full is not None:
            context.color_range = 2 if full else 1
        if display is not None:
            stream.set_display_matrix(display)
        stream.metadata.update(metadata or {})
        tones = [(sound, _tone_stream(out, sound)) for sound in sounds]
        rest = more(out) if more is not None else None
        for sound, tone in tones:
            for frame in _tone(sound):
                out.mux(tone.encode(frame))
            out.mux(tone.encode(None))
        if rest is not None:
            rest()
        for index, pts in enumerate(times):
            frame = drawn(index, pixels, *size)
            frame.pts, frame.time_base = pts, time_base
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def drawn(index: int, pixels: str, width: int, height: int) -> av.VideoFrame:
    """One frame of the pattern in a planar format, or in a packed one by FFmpeg."""
    planar = pixels if not pixels.startswith(("rgb", "bgr", "nv", "yuy", "pal")) else "yuv420p"
    frame = av.VideoFrame(width, height, planar)
    bits = max(component.bits for component in frame.format.components)
    for number, plane in enumerate(frame.planes):
        lines = np.frombuffer(plane, np.uint8 if bits == 8 else np.uint16).reshape(plane.height, -1)
        lines[:, : plane.width] = pattern(index, plane.height, plane.width, (1 << bits) - 1, number)
    return frame if planar == pixels else frame.reformat(format=pixels)


def _tone_stream(out: Any, sound: Sound) -> Any:
    stream = out.add_stream(sound.codec, rate=48000)
    stream.layout = "mono"
    stream.metadata["language"] = sound.language
    return stream


def _tone(sound: Sound) -> Iterable[av.AudioFrame]:
    format = {"aac": "fltp", "libopus": "s16", "flac": "s16", "mp2": "s16", "libmp3lame": "s16p", "pcm_s16le": "s16"}
    samples = int(sound.seconds * 48000)
    wave = np.sin(np.arange(samples) * (0.05 if sound.language == "eng" else 0.09))
    for begin in range(0, samples, 960):
        part = wave[None, begin : begin + 960]
        data = part.astype(np.float32) if format[sound.codec] == "fltp" else (part * 9000).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(data, format=format[sound.codec], layout="mono")
        frame.sample_rate, frame.time_base = 48000, Fraction(1, 48000)
        frame.pts = begin + int(sound.begin_s * 48000)
        yield frame


def subtitled(folder: Path) -> Callable[[Any], Callable[[], None]]:
    """What adds two kinds of subtitles, chapters and a font to a Matroska file."""
    srt, ass = folder / "one.srt", folder / "two.ass"
    srt.write_text("1\n00:00:00,040 --> 00:00:00,200\nhello\n\n2\n00:00:00,240 --> 00:00:00,400\nworld\n")
    ass.write_text(
        "[Script Info]\nScriptType: v4.00+\n\n[V4+ Styles]\nFormat: Name, Fontname, Fontsize\nStyle: Default,Arial,20\n"
        "\n[Events]\nFormat: Layer, Start, End, Style, Text\nDialogue: 0,0:00:00.10,0:00:00.30,Default,hi\n"
    )

    def add(out: Any) -> Callable[[], None]:
        texts = [av.open(str(path)) for path in (srt, ass)]
        streams = [out.add_stream_from_template(text.streams[0], opaque=True) for text in texts]
        for stream, language in zip(streams, ("deu", "fra"), strict=True):
            stream.metadata["language"] = language
        streams[1].disposition = av.stream.Disposition.forced
        out.add_attachment("font.ttf", "application/x-truetype-font", b"no font, but kept all the same")
        half = {"time_base": Fraction(1, 1000), "metadata": {"title": "one"}, "id": 1, "start": 0, "end": 240}
        out.set_chapters([half, {**half, "id": 2, "start": 240, "end": 480, "metadata": {"title": "two"}}])
        out.metadata["title"] = "a title"

        def rest() -> None:
            for text, stream in zip(texts, streams, strict=True):
                for packet in text.demux():
                    if packet.size:
                        packet.stream = stream
                        out.mux_one(packet)
                text.close()

        return rest

    return add


def cover(out: Any) -> Callable[[], None]:
    """What adds a cover picture to a file."""
    stream = out.add_stream("mjpeg", rate=1)
    stream.width, stream.height, stream.pix_fmt = 32, 32, "yuvj420p"
    stream.disposition = av.stream.Disposition.attached_pic

    def rest() -> None:
        frame = drawn(0, "yuvj420p", 32, 32)
        frame.pts, frame.time_base = 0, Fraction(1)
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))

    return rest


def sound_only(path: Path, codec: str, *, picture: bool = False) -> Path:
    """A file of sound, with a cover picture or without."""
    sound = Sound(codec)
    with av.open(str(path), "w") as out:
        tone = _tone_stream(out, sound)
        rest = cover(out) if picture else None
        if rest is not None:
            rest()
        for frame in _tone(sound):
            out.mux(tone.encode(frame))
        out.mux(tone.encode(None))
    return path


def cut(path: Path, source: Path, share: float) -> Path:
    """The first part of a file."""
    data = source.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def flipped(path: Path, source: Path, count: int = 12, seed: int = 1) -> Path:
    """A file with bytes changed in its middle."""
    data = bytearray(source.read_bytes())
    dice = random.Random(seed)
    for _ in range(count):
        data[dice.randrange(len(data) // 4, len(data) * 3 // 4)] ^= dice.randrange(1, 256)
    path.write_bytes(data)
    return path


def after(path: Path, *parts: Path) -> Path:
    """Files one after the other, as some recorders leave them."""
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path
