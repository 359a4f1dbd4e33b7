"""Every kind of video goes through: no frame, no time, no other stream and no tag is lost, or it is said."""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from clips import FRAMES, Sound, make, subtitled
from video_kinds import MORE, QUICK, Kind

from srgan_fast.errors import BackendUnavailable, OutputError, UsageError
from srgan_fast.video.colour import from_rgb, to_rgb
from srgan_fast.video.encoder import Codec, Encoder, Options, choose, output_of
from srgan_fast.video.mux import Written, container_of, join, limits
from srgan_fast.video.source import Frame, Source, main_stream

SCALE = 2


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On pictures this small threads only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


_FAST = {"libx264": "ultrafast", "libx265": "ultrafast", "libvpx-vp9": "8"}


def rgb_of(frame: Frame) -> torch.Tensor:
    return to_rgb([torch.from_numpy(np.ascontiguousarray(plane)) for plane in frame.planes], frame.colour)


def encoded(source: Source, folder: Path, codec: Codec, bounds: Sequence[int | None] = (None, None)) -> list[Path]:
    """The source enlarged by repeated pixels, in segments."""
    output = output_of(source.info, SCALE, codec)
    segments = []
    for number, (start, stop) in enumerate(zip(bounds, bounds[1:], strict=False)):
        segments.append(folder / f"{number}.nut")
        encoder = Encoder(segments[-1], output, codec, Options(crf=4, preset=_FAST[codec.name]))
        for frame in source.frames(start, stop):
            large = rgb_of(frame).repeat_interleave(SCALE, 0).repeat_interleave(SCALE, 1)
            encoder.write([plane.numpy() for plane in from_rgb(large, output.colour)], frame.pts)
        encoder.close()
    return segments


def upscaled(source: Source, target: Path, *, pieces: bool = True) -> tuple[Written, Codec]:
    depth = 8 if source.info.colour.depth == 8 else 10
    size = source.info.width * SCALE, source.info.height * SCALE
    container = container_of(target)
    codec = choose("auto", *size, depth, container)
    bounds = [None, *source.keyframes()[1:], None] if pieces else [None, None]
    segments = encoded(source, target.parent, codec, bounds)
    return join(source, segments, target, container, output_of(source.info, SCALE, codec)), codec


def beginning_of(container: Any) -> Fraction:
    """Where a file begins, not before zero; an attached picture has no time."""
    streams = [stream for stream in container.streams if stream.start_time is not None and stream.frames != 1]
    return max(Fraction(0), min((stream.start_time * stream.time_base for stream in streams), default=Fraction(0)))


def times_of(path: Path) -> tuple[list[Fraction], Fraction]:
    """When frames are shown, in seconds from the beginning of the file, as PyAV alone has it; and the tick."""
    with av.open(str(path)) as container:
        stream = main_stream(container)
        start = beginning_of(container)
        frames = [frame.pts * frame.time_base for frame in container.decode(stream) if frame.pts is not None]
        return [time - start for time in frames], stream.time_base


def streams_of(path: Path) -> dict[str, Any]:
    """What other streams hold: by kind and number, the digest of their packets, their language, their beginning."""
    found: dict[str, Any] = {}
    with av.open(str(path)) as container:
        video = main_stream(container)
        start = beginning_of(container)
        for stream in container.streams:
            if stream.index != video.index and stream.type in ("audio", "subtitle", "video"):
                found[stream.index] = [
                    stream.type,
                    stream.codec_context.name,
                    stream.language or "und",
                    hashlib.md5(),
                    None,
                ]
            elif stream.type == "attachment":
                found[stream.index] = ["attachment", stream.metadata["filename"], None, hashlib.md5(stream.data), 0]
        for packet in container.demux():
            if packet.size and packet.stream_index in found:
                entry = found[packet.stream_index]
                entry[3].update(bytes(packet))
                if entry[4] is None and packet.pts is not None:
                    entry[4] = packet.pts * packet.time_base - start
    return {
        f"{i} {kind} {name} {lang} {md5.hexdigest()}": at
        for i, (kind, name, lang, md5, at) in enumerate(found.values())
    }


def check(kind: Kind, folder: Path) -> None:
    path = kind.make(folder)
    source = Source(path)
    target = folder / f"out{kind.target}"
    whole = list(source.frames())
    # Cut anywhere, a file gives the same frames.
    keys = source.keyframes()
    if keys and not kind.damaged:
        bounds = [None, *keys[1:], None]
        parts = [frame for a, b in zip(bounds, bounds[1:], strict=False) for frame in source.frames(a, b)]
        assert [frame.pts for frame in parts] == [frame.pts for frame in whole]
        for one, other in zip(parts, whole, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(one.planes, other.planes, strict=True))
    written, codec = upscaled(source, target, pieces=not kind.damaged)
    assert kind.frames in (None, len(whole))
    assert re.search(kind.note, " ".join(source.notes))
    assert bool(source.damaged) == kind.damaged, source.notes
    assert written.frames == len(whole) > 0

    now, new_tick = times_of(target)
    tick = source.info.time_base
    if kind.damaged or kind.note.startswith(("timestamps", "the size")):
        before = [
            frame.pts * tick - source.info.start_s for frame in whole
        ]  # what PyAV alone gives is less, or nothing
    else:
        before, _ = times_of(path)
    # What begins before zero, as the first sound of an MP4 does, moves all of these.
    moved = kind.target == ".ts" or (path.suffix == ".mp4" and kind.target == ".mkv")
    shift = now[0] - before[0] if moved else 0
    assert len(now) == len(before) == len(whole)
    assert max(abs(a - b - shift) for a, b in zip(now, before, strict=True)) <= max(tick, new_tick)

    result = Source(target)
    info, was = result.info, source.info
    assert (info.width, info.height, info.sar) == (was.width * SCALE, was.height * SCALE, was.sar)
    assert info.colour.tagged
    assert 2 not in (info.colour.primaries, info.colour.transfer)
    wanted = output_of(was, SCALE, codec)
    assert (info.colour.matrix, info.colour.full) == (wanted.colour.matrix, wanted.colour.full)
    assert (info.colour.primaries, info.colour.transfer) == (wanted.colour.primaries, wanted.colour.transfer)
    assert info.colour.siting == wanted.colour.siting
    assert info.hdr == was.hdr
    if kind.target != ".ts":
        assert info.display == was.display
    if not kind.noisy and not kind.damaged:
        top = 65535 if was.colour.depth > 8 else 255
        for old, new in zip(whole, result.frames(), strict=True):
            one, other = rgb_of(old).float() / top, rgb_of(new).float()
            other = other / (65535 if info.colour.depth > 8 else 255)
            small = other.unflatten(0, (-1, SCALE)).unflatten(2, (-1, SCALE)).mean((1, 3))
            assert (small - one).abs().mean() < 0.012
    others, kept = streams_of(path), streams_of(target)
    if kind.dropped:
        assert re.search(kind.dropped, " ".join(written.notes))
    else:
        assert set(kept) == set(others)
        if not kind.damaged and kind.note != "timestamps go back":
            late = [kept[name] - at - shift for name, at in others.items() if at is not None]
            assert all(abs(by) <= max(tick, new_tick) + Fraction(1, 1000) for by in late), late


@pytest.mark.parametrize("kind", QUICK, ids=lambda kind: kind.name)
def test_goes_through(kind: Kind, tmp_path: Path) -> None:
    check(kind, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MORE, ids=lambda kind: kind.name)
def test_all_kinds_go_through(kind: Kind, tmp_path: Path) -> None:
    check(kind, tmp_path)
