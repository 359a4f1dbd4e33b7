"""Source: what is no video is refused in one line; what is one is read exactly, from any keyframe to any other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from clips import FRAMES, W, after, cut, drawn, flipped, make
from video_kinds import REFUSED

from srgan_fast.errors import InputError
from srgan_fast.video.colour import to_rgb
from srgan_fast.video.planes import planes_of
from srgan_fast.video.source import Source


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_in_one_line(name: str, tmp_path: Path) -> None:
    maker, reason = REFUSED[name]
    path = maker(tmp_path)
    with pytest.raises(InputError, match=reason) as caught:
        list(Source(path).frames())
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


def test_planes_are_those_that_were_written(tmp_path: Path) -> None:
    for pixels, dtype in (("yuv420p", np.uint8), ("yuv422p10le", np.uint16), ("yuv444p", np.uint8), ("gray", np.uint8)):
        path = make(tmp_path / f"{pixels}.mkv", "ffv1", pixels, size=(61, 47))
        for index, frame in enumerate(Source(path).frames()):
            planes = drawn(index, pixels, 61, 47).planes
            for plane, mine in zip(planes, frame.planes, strict=True):
                lines = np.frombuffer(plane, dtype).reshape(plane.height, -1)[:, : plane.width]
                assert mine.dtype == dtype
                assert np.array_equal(mine, lines)


def test_planes_outlive_the_decoder(tmp_path: Path) -> None:
    source = Source(make(tmp_path / "in.mkv", "ffv1", times=range(40)))
    kept = list(source.frames())
    again = [[plane.copy() for plane in frame.planes] for frame in source.frames()]
    for frame, planes in zip(kept, again, strict=True):
        assert all(np.array_equal(one, other) for one, other in zip(frame.planes, planes, strict=True))


@pytest.mark.parametrize("suffix", [".ts", ".mp4", ".mkv"])
def test_any_part_is_exact(suffix: str, tmp_path: Path) -> None:
    open_gop = {"x264-params": "open-gop=1:keyint=7:bframes=3:b-adapt=0"}
    source = Source(make(tmp_path / f"in{suffix}", times=range(60), options=open_gop))
    whole = list(source.frames())
    keys = source.keyframes()
    assert len(whole) == 60
    assert len(keys) == 9
    for first, last in ((1, 2), (3, 8), (8, None), (0, 1), (5, 6)):
        start, stop = keys[first], None if last is None else keys[last]
        wanted = [frame for frame in whole if frame.pts >= start and (stop is None or frame.pts < stop)]
        got = list(source.frames(start, stop))
        assert [frame.pts for frame in got] == [frame.pts for frame in wanted] != []
        for one, other in zip(got, wanted, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(one.planes, other.planes, strict=True))


def test_a_seek_that_goes_too_far_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import srgan_fast.video.source as module

    source = Source(make(tmp_path / "in.mp4", times=range(60)))
    keys = source.keyframes()
    wanted = [frame.pts for frame in source.frames() if frame.pts >= keys[4]]
    tried: list[int] = []

    def too_far(container: object, stream: object, start: int, back_s: int) -> bool:
        tried.append(back_s)
        container.seek(keys[6], stream=stream, backward=True)  # type: ignore[attr-defined]
        return True

    monkeypatch.setattr(module, "_sought", too_far)
    assert [frame.pts for frame in source.frames(keys[4])] == wanted
    assert len(tried) > 1


def test_what_cannot_be_cut_has_no_keyframes(tmp_path: Path) -> None:
    one, two = make(tmp_path / "a.ts"), make(tmp_path / "b.ts")
    assert Source(make(tmp_path / "in.h264")).keyframes() == []
    assert Source(after(tmp_path / "in.ts", one, two)).keyframes() == []
    assert Source(make(tmp_path / "one.mp4", options={"g": "50"})).keyframes() == []


def test_times_that_are_missing_come_from_the_codec(tmp_path: Path) -> None:
    options = {"x264-params": "force-cfr=1:keyint=6"}
    source = Source(make(tmp_path / "in.h264", rate=30, options=options))
    times = [frame.pts * source.info.time_base for frame in source.frames()]
    assert times == [Fraction(index, 30) for index in range(FRAMES)]


def test_times_that_go_back_follow_on(tmp_path: Path) -> None:
    uneven = {"times": [0, 4, 5, 9, 10, 20], "time_base": Fraction(1, 25)}
    one, two = make(tmp_path / "a.ts", **uneven), make(tmp_path / "b.ts", **uneven)
    source = Source(after(tmp_path / "in.ts", one, two))
    times = [frame.pts * source.info.time_base for frame in source.frames()]
    steps = [4, 1, 4, 1, 10]
    assert len(times) == 12
    assert [25 * step for step in np.diff(times[:6])] == steps
    assert [25 * step for step in np.diff(times[6:])] == steps  # not one after the other
    assert times[6] > times[5]


@pytest.mark.parametrize(
    ("suffix", "codec", "pixels"),
    [
        *((".avi", "rawvideo", "bgr24"), (".avi", "utvideo", "gbrp"), (".mkv", "libx264rgb", "rgb24")),
        *((".gif", "gif", "rgb8"), (".avi", "rawvideo", "yuyv422"), (".nut", "rawvideo", "nv12")),
        *((".mkv", "ffv1", "gray10le"), (".mkv", "ffv1", "yuva420p"), (".avi", "rawvideo", "yuv411p")),
    ],
)
def test_pixels_of_any_layout_are_those_that_ffmpeg_shows(suffix: str, codec: str, pixels: str, tmp_path: Path) -> None:
    path = make(tmp_path / f"in{suffix}", codec, pixels, times=range(3), rate=10)
    with av.open(str(path)) as container:
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for frame, picture in zip(Source(path).frames(), shown, strict=True):
        rgb = to_rgb([torch.from_numpy(np.ascontiguousarray(plane)) for plane in frame.planes], frame.colour)
        mine = rgb.numpy().astype(np.float64) / (1 if rgb.dtype == torch.uint8 else 257)
        assert np.abs(mine - picture).mean() < 4  # its chroma is coarser than ours


def test_lines_that_run_upwards_are_turned_round() -> None:
    frame = drawn(3, "yuv420p", 61, 47)
    frame.pts, frame.time_base = 0, Fraction(1, 25)
    graph = av.filter.Graph()
    source = graph.add_buffer(width=61, height=47, format=frame.format, time_base=frame.time_base)
    turn, sink = graph.add("vflip"), graph.add("buffersink")
    source.link_to(turn)
    turn.link_to(sink)
    graph.configure()
    graph.push(frame)
    flipped_frame = graph.pull()
    assert flipped_frame.planes[0].line_size < 0
    notes: list[str] = []
    for mine, plane in zip(planes_of(flipped_frame, (61, 47), notes.append), frame.planes, strict=True):
        lines = np.frombuffer(plane, np.uint8).reshape(plane.height, -1)[:, : plane.width]
        assert np.array_equal(mine, lines[::-1])
    assert notes == []


@pytest.mark.parametrize(("name", "siting"), [("left", "left"), ("center", "centre"), ("topleft", "topleft")])
def test_the_position_of_chroma_is_read(name: str, siting: str, tmp_path: Path) -> None:
    path = make(tmp_path / "in.mp4", options={"chroma_sample_location": name})
    with ThreadPoolExecutor(8) as threads:  # as where many videos are planned at once
        assert set(threads.map(lambda _: Source(path).info.colour.siting, range(24))) == {siting}
    assert av.logging.get_level() is None


def test_jpeg_has_its_chroma_in_the_centre(tmp_path: Path) -> None:
    assert Source(make(tmp_path / "in.avi", "mjpeg", "yuvj420p")).info.colour.siting == "centre"
    assert Source(make(tmp_path / "in.mkv", "mpeg2video", options={"b": "1M"})).info.colour.siting == "left"


def test_damage_is_counted_and_reading_goes_on(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole.mkv", times=range(80))
    short = Source(cut(tmp_path / "short.mkv", whole, 0.5))
    read = len(list(short.frames()))
    assert 20 < read < 60
    assert abs(read + short.damaged - 80) <= 2
    broken = Source(flipped(tmp_path / "broken.mkv", whole, 20))
    assert len(list(broken.frames())) > 60
    assert broken.damaged > 0
    assert broken.notes


def test_damage_is_counted_in_its_part(tmp_path: Path) -> None:
    path = make(tmp_path / "in.ts", times=range(60))
    keys = Source(path).keyframes()
    data = bytearray(path.read_bytes())
    for at in range(len(data) * 6 // 10, len(data) * 6 // 10 + 4000, 97):
        data[at] ^= 0x55
    path.write_bytes(data)
    damaged = []
    for start, stop in ((None, keys[3]), (keys[3], keys[8]), (keys[8], None)):
        part = Source(path)
        list(part.frames(start, stop))
        damaged.append(part.damaged)
    assert damaged[0] == damaged[2] == 0 < damaged[1]


def test_missing_frames_of_an_mp4_are_known_at_once(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole.mp4", times=range(50), muxing={"movflags": "+faststart"})
    source = Source(cut(tmp_path / "short.mp4", whole, 0.6))
    assert source.info.frames == 50
    assert source.damaged > 5
    count = len(list(source.frames()))
    assert 50 - source.damaged <= count < 50


def test_several_readers_at_once(tmp_path: Path) -> None:
    source = Source(make(tmp_path / "in.mp4", times=range(30)))
    key = source.keyframes()[2]
    first, second = source.frames(), source.frames(key)
    mixed = [(next(first).pts, next(second).pts) for _ in range(10)]
    times = [frame.pts for frame in source.frames()]
    after_key = [time for time in times if time >= key]
    assert mixed == list(zip(times[:10], after_key[:10], strict=True))
    first.close()
    second.close()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine with a GPU may have NVDEC")
def test_without_nvdec_the_cpu_decodes_and_it_is_said(tmp_path: Path) -> None:
    path = make(tmp_path / "in.mp4")
    source = Source(path, hardware=True)
    for one, other in zip(source.frames(), Source(path).frames(), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one.planes, other.planes, strict=True))
    assert [note for note in source.notes if "no NVDEC here" in note]


def test_names_that_look_like_protocols(tmp_path: Path) -> None:
    path = make(tmp_path / "in.mp4")
    odd = path.rename(tmp_path / "http:clip %03d.mp4")
    assert len(list(Source(odd).frames())) == FRAMES


def test_info_says_what_the_file_says(tmp_path: Path) -> None:
    turned = [0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30]
    path = make(tmp_path / "in.mp4", rate=Fraction(24000, 1001), sar=Fraction(4, 3), display=turned)
    info = Source(path).info
    assert (info.width, info.sar, info.rotation, info.rate) == (W, Fraction(4, 3), -90, Fraction(24000, 1001))
    assert (info.frames, info.codec, info.interlaced) == (FRAMES, "h264", False)
    assert info.duration_s == pytest.approx(FRAMES * 1001 / 24000)
    with av.open(str(path)) as container:
        assert info.time_base == container.streams.video[0].time_base
