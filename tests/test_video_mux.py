"""Every kind of video goes through: no frame, no time, no other stream and no tag is lost, or it is said."""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
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

pytestmark = pytest.mark.usefixtures("one_thread")

SCALE = 2
_FAST = {"libx264": "ultrafast", "libx265": "ultrafast", "libvpx-vp9": "8"}


def rgb_of(frame: Frame) -> torch.Tensor:
    return to_rgb([torch.from_numpy(np.ascontiguousarray(plane)) for plane in frame.planes], frame.colour)


def encoded(source: Source, folder: Path, codec: Codec, bounds: Sequence[int | None] = (None, None)) -> list[Path]:
    """The source enlarged by repeated pixels, in segments."""
    output = output_of(source.info, SCALE, codec)
    segments = []
    for number, (start, stop) in enumerate(pairwise(bounds)):
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
                found[stream.index] = [stream.type, stream.language or "und", hashlib.md5(), None]
            elif stream.type == "attachment":
                found[stream.index] = ["attachment", stream.metadata["filename"], hashlib.md5(stream.data), 0]
        for packet in container.demux():
            if packet.size and packet.stream_index in found:
                entry = found[packet.stream_index]
                entry[2].update(bytes(packet))
                if entry[3] is None and packet.pts is not None:
                    entry[3] = packet.pts * packet.time_base - start
    return {f"{i} {kind} {name} {digest.hexdigest()}": at for i, (kind, name, digest, at) in enumerate(found.values())}


def check(kind: Kind, folder: Path) -> None:
    path = kind.make(folder)
    source = Source(path)
    target = folder / f"out{kind.target}"
    whole = list(source.frames())
    # Cut anywhere, a file gives the same frames.
    keys = source.keyframes()
    if keys and not kind.damaged:
        bounds = [None, *keys[1:], None]
        parts = [frame for a, b in pairwise(bounds) for frame in source.frames(a, b)]
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
    if path.suffix == kind.target == ".mp4" and not kind.damaged and was.end > whole[-1].pts:
        assert info.end == pytest.approx(was.end * was.time_base / info.time_base, abs=1)
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


def test_all_that_a_file_says_is_kept(tmp_path: Path) -> None:
    path = make(
        tmp_path / "in.mkv",
        sounds=[Sound(), Sound("flac", language="fra")],
        more=subtitled(tmp_path),
        colours=(9, 9, 16),
    )
    upscaled(Source(path), tmp_path / "out.mkv")
    with av.open(str(path)) as before, av.open(str(tmp_path / "out.mkv")) as now:
        assert now.metadata["title"] == "a title"
        assert now.chapters() == before.chapters() != []
        assert [stream.type for stream in now.streams] == [stream.type for stream in before.streams]
        for one, other in zip(now.streams, before.streams, strict=True):
            assert one.disposition == other.disposition
            assert one.language == other.language


def test_limits_are_said_before_anything_is_rendered(tmp_path: Path) -> None:
    source = Source(make(tmp_path / "in.mkv", sounds=[Sound()], more=subtitled(tmp_path)))
    x264, vp9 = choose("libx264", 128, 96, 8), choose("libvpx-vp9", 128, 96, 8)
    assert limits(source, tmp_path / "out.mkv", x264) == []
    lost = limits(source, tmp_path / "out.mp4", x264)
    assert len(lost) == 3
    assert all("write .mkv" in line for line in lost)
    assert "aac" in " ".join(limits(source, tmp_path / "out.webm", vp9))
    assert "chapters" in " ".join(limits(source, tmp_path / "out.ts", x264))
    with pytest.raises(UsageError, match=r"\.webm cannot hold video of libx264; write out.mkv"):
        limits(source, tmp_path / "out.webm", x264)
    with pytest.raises(UsageError, match="expected an output of"):
        limits(source, tmp_path / "out.wmv", x264)
    turned = Source(make(tmp_path / "turned.mp4", display=[0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30]))
    assert "rotation" in limits(turned, tmp_path / "out.ts", x264)[0]


def test_codecs_are_found_by_opening_them() -> None:
    assert choose("auto", 1920, 1080, 8).name in ("libx264", "h264_nvenc")
    assert choose("auto", 5120, 2880, 8).name in ("libx265", "hevc_nvenc")
    assert choose("auto", 1920, 1080, 10).name in ("libx265", "hevc_nvenc")
    assert choose("auto", 1920, 1080, 8, "webm").name in ("libvpx-vp9", "av1_nvenc")
    with pytest.raises(UsageError, match="expected --codec auto, libx264"):
        choose("divx", 64, 64, 8)
    with pytest.raises(UsageError, match="8 bits a channel, asked for 10"):
        choose("h264_nvenc", 64, 64, 10)
    with pytest.raises(UsageError, match="at most 4096 pixels a side"):
        choose("h264_nvenc", 5120, 2880, 8)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine with a GPU may have NVENC")
def test_an_encoder_that_is_not_there_is_said() -> None:
    with pytest.raises(BackendUnavailable, match="no NVENC on this machine; take --codec auto"):
        choose("hevc_nvenc", 640, 480, 8)


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libsvtav1", "libvpx-vp9", "ffv1"])
def test_every_encoder_keeps_tags_and_times(codec: str, tmp_path: Path) -> None:
    depth = 10 if codec in ("libx265", "ffv1") else 8
    target = tmp_path / ("out.mkv" if codec == "ffv1" else "out.mp4")
    source = Source(make(tmp_path / "in.mp4", times=[0, 1, 4, 5, 9], rate=25, sar=Fraction(8, 9), colours=(9, 9, 18)))
    found = choose(codec, 128, 96, depth)
    output = output_of(source.info, SCALE, found)
    preset = {"libx264": "ultrafast", "libx265": "ultrafast", "libsvtav1": "11", "libvpx-vp9": "8"}.get(codec)
    encoder = Encoder(tmp_path / "0.nut", output, found, Options(preset=preset))
    for frame in source.frames():
        planes = from_rgb(rgb_of(frame).repeat_interleave(SCALE, 0).repeat_interleave(SCALE, 1), output.colour)
        encoder.write([plane.numpy() for plane in planes], frame.pts)
    encoder.close()
    written = join(source, [tmp_path / "0.nut"], target, container_of(target), output)
    lost = [line for line in limits(source, target, found) if "shape" in line]
    assert len(lost) == len([note for note in written.notes if "shape" in note]) == (codec == "ffv1")
    info = Source(target).info
    assert info.sar == (1 if lost else Fraction(8, 9))
    assert (info.colour.matrix, info.colour.primaries, info.colour.transfer) == ("bt2020", 9, 18)
    assert (info.colour.depth, info.colour.full, info.colour.tagged) == (depth, False, True)
    assert times_of(target)[0] == [Fraction(index, 25) for index in (0, 1, 4, 5, 9)]


@pytest.mark.parametrize(("codec", "depth"), [("libx264", 8), ("ffv1", 10)])
def test_without_loss_the_planes_come_back_as_they_were(codec: str, depth: int, tmp_path: Path) -> None:
    source = Source(make(tmp_path / "in.mkv", "ffv1", size=(33, 25)))
    found = choose(codec, 66, 50, depth)
    output = output_of(source.info, SCALE, found)
    dice = np.random.default_rng(3)
    shapes = [(50, 66), (25, 33), (25, 33)]
    kind = np.uint8 if depth == 8 else np.uint16
    frames = [tuple(dice.integers(0, 1 << depth, shape).astype(kind) for shape in shapes) for _ in range(5)]
    encoder = Encoder(tmp_path / "0.nut", output, found, Options(crf=0) if codec == "libx264" else Options())
    for index, planes in enumerate(frames):
        encoder.write(planes, 40 * index)
    encoder.close()
    join(source, [tmp_path / "0.nut"], tmp_path / "out.mkv", "matroska", output)
    for planes, frame in zip(frames, Source(tmp_path / "out.mkv").frames(), strict=True):
        assert all(np.array_equal(one, other) for one, other in zip(planes, frame.planes, strict=True))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_frames_before_zero_are_shown(suffix: str, tmp_path: Path) -> None:
    source = Source(make(tmp_path / "in.mp4", sounds=[Sound()]))
    codec = choose("libx264", 128, 96, 8)
    output = output_of(source.info, SCALE, codec)
    encoder = Encoder(tmp_path / "0.nut", output, codec, Options(preset="ultrafast"))
    for pts in (-5120, -4608, 0, 512):
        encoder.write([np.full((96, 128), 99, np.uint8)], pts)
    encoder.close()
    join(source, [tmp_path / "0.nut"], tmp_path / f"out{suffix}", container_of(Path(f"out{suffix}")), output)
    times, _ = times_of(tmp_path / f"out{suffix}")
    assert [round(1000 * (time - times[0])) for time in times] == [0, 40, 400, 440]


def test_the_last_frame_is_shown_as_long_as_the_source_says(tmp_path: Path) -> None:
    source = Source(make(tmp_path / "in.mp4"))
    codec = choose("libx264", 128, 96, 8)
    output = output_of(source.info, SCALE, codec)
    encoder = Encoder(tmp_path / "0.nut", output, codec, Options(preset="ultrafast"))
    for pts in (0, 512, 5120):
        encoder.write([np.full((96, 128), 99, np.uint8)], pts)
    encoder.close()
    written = join(source, [tmp_path / "0.nut"], tmp_path / "out.mp4", "mp4", output)
    assert source.info.end == Source(tmp_path / "out.mp4").info.end == FRAMES * 512
    assert written.duration_s == pytest.approx(FRAMES / 25)


def test_segments_of_other_settings_are_refused(tmp_path: Path) -> None:
    source = Source(make(tmp_path / "in.mp4", times=range(20)))
    codec = choose("libx264", 128, 96, 8)
    bounds = [None, source.keyframes()[1], None]
    segments = encoded(source, tmp_path, codec, bounds)
    output = output_of(source.info, SCALE, codec)
    with pytest.raises(OutputError, match="the same time"):
        join(source, [segments[1], segments[1]], tmp_path / "out.mp4", "mp4", output)
    other = Encoder(segments[1], output, codec, Options(crf=4, preset="medium"))
    other.write([np.zeros((96, 128), np.uint8)], 5000)
    other.close()
    with pytest.raises(OutputError, match="encoded with other settings; start again with --restart"):
        join(source, segments, tmp_path / "out.mp4", "mp4", output)


class _Full:
    """A file on a disk that is full after so many bytes."""

    def __init__(self, path: Path, room: int) -> None:
        self._file, self._room = path.open("wb"), room

    def write(self, data: bytes) -> int:
        self._room -= len(data)
        if self._room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source(make(tmp_path / "in.mp4", times=range(30)))
    codec = choose("libx264", 128, 96, 8)
    output = output_of(source.info, SCALE, codec)
    path = tmp_path / "0.nut"
    full = _Full(path, 9000)
    monkeypatch.setattr(Path, "open", lambda self, mode="r": full)
    encoder = Encoder(path, output, codec, Options(preset="ultrafast"))
    monkeypatch.undo()
    dice = np.random.default_rng(1)

    def fill() -> None:
        for index in range(60):
            encoder.write([dice.integers(0, 255, (96, 128), np.uint8)], index * 512)
        encoder.close()

    with pytest.raises(OutputError, match="No space left on device; free some space"):
        fill()
    encoder.abort()
    assert not path.exists()


def test_options_that_a_codec_does_not_have_are_refused(tmp_path: Path) -> None:
    source = Source(make(tmp_path / "in.mp4"))
    codec = choose("ffv1", 128, 96, 8)
    with pytest.raises(UsageError, match="ffv1 has no --crf"):
        Encoder(tmp_path / "0.nut", output_of(source.info, SCALE, codec), codec, Options(crf=20))
    x264 = choose("libx264", 128, 96, 8)
    for options, said in (
        (Options(preset="warp"), "expected a --preset of libx264"),
        (Options(crf=60), "from 0 to 51"),
    ):
        with pytest.raises(UsageError, match=said):
            Encoder(tmp_path / "1.nut", output_of(source.info, SCALE, x264), x264, options)
