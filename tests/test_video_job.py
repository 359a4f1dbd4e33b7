"""Videos as a user gives them to `srgan-fast upscale`: whole, stopped, killed, damaged, refused."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import clips
import numpy as np
import pytest
import torch
from clips import Sound, make, subtitled
from conftest import one_line
from nearest import Nearest
from PIL import Image

from srgan_fast import Upscaler
from srgan_fast.errors import Interrupted, UsageError
from srgan_fast.memory import resident_bytes
from srgan_fast.video import job, segments
from srgan_fast.video.colour import from_rgb, to_rgb
from srgan_fast.video.encoder import Encoder
from srgan_fast.video.job import VideoOptions, upscale_video
from srgan_fast.video.pipeline import THREAD_NAME
from srgan_fast.video.segments import Segment
from srgan_fast.video.source import Source

Run = Callable[..., tuple[int, str, str]]
SOAK = bool(os.environ.get("SRGAN_FAST_SOAK"))
QUICK = VideoOptions(preset="ultrafast")


@pytest.fixture(autouse=True)
def _none_left(one_thread: None) -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)] == []


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of a quarter of a second, one keyframe each."""
    monkeypatch.setattr(job, "cut", lambda keyframes, time_base: segments.cut(keyframes, time_base, 0.2))


def upscaled(source: Path, target: Path, options: VideoOptions = QUICK, upscaler: Any = None, **more: Any) -> Any:
    return upscale_video(source, target, upscaler or Nearest(), options, **more)


def times(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        return sorted(float(p.pts * p.time_base) for p in container.demux(video=0) if p.size)


def digests(path: Path, kind: str) -> list[str]:
    """Of the packets of all streams of a kind."""
    with av.open(str(path)) as container:
        found = [stream for stream in container.streams if stream.type == kind]
        return [hashlib.sha256(bytes(p)).hexdigest() for p in container.demux(found) if p.size] if found else []


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_segments_begin_at_keyframes_that_are_far_enough_apart() -> None:
    tick = Fraction(1, 10)
    found = segments.cut([0, 4, 9, 10, 13, 20, 45, 46], tick, 1)
    assert [(each.start, each.stop) for each in found] == [(None, 10), (10, 20), (20, 45), (45, None)]
    assert [(each.start, each.stop) for each in segments.cut([], tick, 1)] == [(None, None)]
    # The first keyframe need not be at zero.
    assert [each.start for each in segments.cut([100, 105, 112], tick, 1)] == [None, 112]


def test_the_command_keeps_all_and_gives_the_pictures_of_the_network(run: Run, tiny: Path, tmp_path: Path) -> None:
    """Losslessly coded, the frames of the output are those of the network from RGB to RGB, to the bit."""
    source = make(tmp_path / "in.mkv", sounds=[Sound(), Sound(language="deu", begin_s=0.2)], more=subtitled(tmp_path))
    code, out, err = run("upscale", source, tmp_path / "out.mkv", "--codec", "ffv1", "--weights", tiny, "--scale", 4)
    assert (code, err) == (0, "")
    assert "12 frames of 256x192" in out
    assert "kept: audio aac (eng), audio aac (deu), subtitle subrip (deu), subtitle ass (fra), attachment" in out
    assert "2 chapters" in out
    assert names(tmp_path) == ["in.mkv", "one.srt", "out.mkv", "two.ass"]
    assert times(tmp_path / "out.mkv") == times(source)
    for kind in ("audio", "subtitle"):
        assert digests(tmp_path / "out.mkv", kind) == digests(source, kind)
    upscaler = Upscaler(tiny)
    with Source(source) as before, Source(tmp_path / "out.mkv") as after:
        for lr, sr in zip(before.frames(), after.frames(), strict=True):
            wanted = from_rgb(upscaler(to_rgb([torch.from_numpy(p.copy()) for p in lr.planes], lr.colour)), sr.colour)
            for plane, want in zip(sr.planes, wanted, strict=True):
                assert np.array_equal(plane, want.numpy())


def test_segments_make_no_difference(tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several segments, and of one: the same frames at the same times; B-frames and variable rate included."""
    ticks = [0, 3, 4, 9, 10, 12, 16, 17, 18, 25, 27, 28, 30, 33, 34, 36, 37, 39]
    source = make(tmp_path / "in.mkv", times=ticks, rate=25)
    lossless = VideoOptions(codec="ffv1")
    tasks: list[Any] = []
    whole = job.render
    monkeypatch.setattr(job, "render", lambda task, up, todo, **how: tasks.append(todo) or whole(task, up, todo, **how))
    upscaled(source, tmp_path / "many.mkv", lossless)
    monkeypatch.setattr(job, "cut", lambda keyframes, time_base: segments.cut([], time_base))
    upscaled(source, tmp_path / "one.mkv", lossless)
    assert [len(todo) for todo in tasks] == [3, 1]
    assert times(tmp_path / "many.mkv") == times(tmp_path / "one.mkv") == times(source)
    with Source(tmp_path / "many.mkv") as many, Source(tmp_path / "one.mkv") as one:
        for a, b in zip(many.frames(), one.frames(), strict=True):
            assert all(np.array_equal(p, q) for p, q in zip(a.planes, b.planes, strict=True))


def test_ten_bits_matrix_and_encoder(tmp_path: Path) -> None:
    source = make(tmp_path / "in.mp4", "libx265", "yuv420p10le", colours=clips.BT2020_PQ)
    assert upscaled(source, tmp_path / "deep.mkv").codec == "libx265"
    plain = make(tmp_path / "plain.mp4")
    options = VideoOptions("libx264", 30, "ultrafast", ten_bit=True, matrix="bt709")
    summary = upscaled(plain, tmp_path / "ten.mp4", options)
    assert "8 bits became 10" in summary.changed
    for name, matrix in (("deep.mkv", "bt2020"), ("ten.mp4", "bt709")):
        with Source(tmp_path / name) as video:
            assert (video.info.colour.depth, video.info.colour.matrix, video.info.colour.tagged) == (10, matrix, True)
    small, large = (
        upscaled(plain, tmp_path / f"{crf}.mp4", VideoOptions(crf=crf, preset="ultrafast")) for crf in (40, 5)
    )
    assert small.target.stat().st_size < 0.5 * large.target.stat().st_size


def test_a_stop_leaves_what_is_done_and_the_same_call_goes_on(tmp_path: Path, short: None) -> None:
    source = make(tmp_path / "in.mp4", times=range(30), sounds=[Sound(seconds=1.2)])
    upscaled(source, tmp_path / "whole.mp4")
    target = tmp_path / "out.mp4"
    asked = iter([False] * 17 + [True] * 1000)
    with pytest.raises(Interrupted, match=r"17 of 30 frames are in .*out\.partial\.mp4.* goes on from frame 12"):
        upscaled(source, target, stop=lambda: next(asked))
    assert names(tmp_path) == ["in.mp4", "out.mp4.parts", "out.partial.mp4", "whole.mp4"]
    partial = tmp_path / "out.partial.mp4"
    assert times(partial) == times(source)[:17]
    with av.open(str(partial)) as container:
        assert len(list(container.decode(video=0))) == 17
        assert 0.5 < float(container.streams.audio[0].duration * container.streams.audio[0].time_base) < 0.8

    seen: list[int] = []
    summary = upscaled(source, target, progress=lambda frames, total, busy_s: seen.append(frames))
    assert (seen[0], seen[-1], summary.resumed) == (13, 30, 12)
    assert target.read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    assert names(tmp_path) == ["in.mp4", "out.mp4", "whole.mp4"]


def test_parts_of_another_job_are_refused_or_thrown_away(run: Run, tmp_path: Path, short: None, tiny: Path) -> None:
    source, target = make(tmp_path / "in.mp4", times=range(30)), tmp_path / "out.mp4"

    def stopped(options: VideoOptions = QUICK) -> None:
        asked = iter([False] * 14 + [True] * 1000)
        with pytest.raises(Interrupted):
            upscaled(source, target, options, stop=lambda: next(asked))

    stopped()
    with pytest.raises(UsageError, match=r"other settings: crf None, not 30; --restart throws them away"):
        upscaled(source, target, VideoOptions(preset="ultrafast", crf=30))
    with pytest.raises(UsageError, match="another input"):
        upscaled(make(tmp_path / "other.mp4", times=range(29)), target)
    partial = tmp_path / "out.partial.mp4"
    partial.write_bytes(b"of someone else by now")
    one_line(run("upscale", source, target, "--weights", tiny), 2, "other settings: model none, not")
    assert "resumed" not in " ".join(upscaled(source, target, VideoOptions(crf=30, restart=True)).lines())
    assert not (tmp_path / "out.mp4.parts").exists()
    assert partial.read_bytes() == b"of someone else by now"
    # A damaged part is done again; a damaged manifest is said.
    stopped()
    parts = tmp_path / "out.mp4.parts"
    (parts / "000000.nut").write_bytes(b"short")
    assert upscaled(source, target).resumed == 6
    stopped()
    (parts / "manifest.json").write_text("{")
    with pytest.raises(UsageError, match="damaged; --restart"):
        upscaled(source, target)
    (parts / "mine.txt").touch()
    with pytest.raises(UsageError, match=r"got mine\.txt; move it away"):
        upscaled(source, target, VideoOptions(restart=True))
    assert (parts / "000000.nut").exists()


def test_two_runs_at_once_for_one_output(tmp_path: Path) -> None:
    source, target = make(tmp_path / "in.mp4"), tmp_path / "out.mp4"
    held: list[str] = []

    def second(frames: int, total: int | None, busy_s: Any) -> None:
        with pytest.raises(UsageError, match="another run is at work") as refused:
            upscaled(source, target)
        held.append(str(refused.value))

    upscaled(source, target, progress=second)
    assert len(held) == 12
    assert names(tmp_path) == ["in.mp4", "out.mp4"]


def test_a_folder_that_goes_while_it_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run ends between the opening of the lock and the taking of it: the folder and its lock are made anew."""
    parts, lock = tmp_path / "out.mp4.parts", segments.fcntl.flock

    def late(file: Any, how: int) -> None:
        monkeypatch.setattr(segments.fcntl, "flock", lock)
        (parts / "lock").unlink()
        parts.rmdir()
        lock(file, how)

    monkeypatch.setattr(segments.fcntl, "flock", late)
    with closing(segments.Parts(parts, {}, {})) as mine:
        mine.begin([Segment(0, None, None)], threads=1)
        with pytest.raises(UsageError, match="another run is at work"):
            segments.Parts(parts, {}, {})


@pytest.mark.parametrize("failing", ["decode", "upscale", "encode", "progress"])
def test_what_fails_is_told_at_once_and_leaves_only_parts(
    failing: str, tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = make(tmp_path / "in.mp4", times=range(60)), tmp_path / "out.mp4"
    # The decoder is ahead by as many frames as the queues hold.
    left = [30 if failing == "decode" else 13]
    failed_s = [0.0]

    def fail() -> None:
        left[0] -= 1
        if left[0] < 0:
            failed_s[0] = time.perf_counter()
            raise RuntimeError(f"in {failing}")

    for owner, name, stage in ((Source, "_frame", "decode"), (Encoder, "write", "encode")):
        if stage == failing:
            whole = getattr(owner, name)
            monkeypatch.setattr(owner, name, lambda *given, whole=whole: fail() or whole(*given))
    upscaler = Nearest(fail if failing == "upscale" else lambda: None)
    with pytest.raises(RuntimeError, match=f"in {failing}"):
        upscaled(source, target, upscaler=upscaler, progress=lambda *_: fail() if failing == "progress" else None)
    assert time.perf_counter() - failed_s[0] < 3
    assert names(tmp_path) == ["in.mp4", "out.mp4.parts"]
    left_over = names(tmp_path / "out.mp4.parts")
    done = [name for name in left_over if name.endswith(".nut")]
    assert done == [f"{i:06}.nut" for i in range(len(done))]
    assert len(done) <= (5 if failing == "decode" else 2)
    monkeypatch.undo()
    assert upscaled(source, target).frames == 60
    assert names(tmp_path) == ["in.mp4", "out.mp4"]


def test_nothing_is_left_of_a_job_that_fails_at_its_first_frames(tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        upscaled(make(tmp_path / "in.mp4"), tmp_path / "out.mp4", upscaler=Nearest(fail))
    assert names(tmp_path) == ["in.mp4"]


def test_a_damaged_input(run: Run, tiny: Path, tmp_path: Path) -> None:
    """Frames that are missing are never exit code 0; those that are damaged are with --strict alone."""
    whole = make(tmp_path / "in.mp4", times=range(24), muxing={"movflags": "+faststart"})
    cut = clips.cut(tmp_path / "cut.mp4", whole, 0.6)
    code, out, err = run("upscale", cut, tmp_path / "out.mp4", "--weights", tiny, "--preset", "ultrafast")
    there = len(times(tmp_path / "out.mp4"))
    assert (code, err.count("\n")) == (10, 1), err
    assert 0 < there < 24
    assert f"was written, but lacks {24 - there} frames that the input says it has" in err
    assert f"missing: {24 - there} frames" in out

    flipped = clips.flipped(tmp_path / "bad.mkv", make(tmp_path / "good.mkv", times=range(24)), count=30, seed=4)
    arguments = ("upscale", flipped, tmp_path / "bad_out.mkv", "--weights", tiny, "--preset", "ultrafast")
    code, out, err = run(*arguments)
    assert (code, err) == (0, ""), err
    assert "frames or packets of the input are damaged" in out
    one_line(run(*arguments, "--strict"), 10, "of the input are damaged")
    assert (tmp_path / "bad_out.mkv").exists()


def test_what_the_container_cannot_hold(run: Run, tiny: Path, tmp_path: Path) -> None:
    source = make(tmp_path / "in.mkv", more=subtitled(tmp_path))
    arguments = ("upscale", source, tmp_path / "out.mp4", "--weights", tiny, "--preset", "ultrafast")
    one_line(run(*arguments, "--strict"), 2, "would not hold all of in.mkv: stream")
    assert not (tmp_path / "out.mp4").exists()
    code, out, err = run(*arguments)
    assert (code, err) == (0, ""), err
    assert out.count("dropped: ") == 3
    assert "write .mkv" in out


def test_mistakes_are_one_line(run: Run, tiny: Path, tmp_path: Path) -> None:
    source, out = make(tmp_path / "in.mp4"), tmp_path / "out.mp4"
    image = tmp_path / "in.png"
    Image.new("RGB", (4, 4)).save(image)
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "link.mp4").symlink_to(source)
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "folder.mp4" / "in.mp4").mkdir()
    before = names(tmp_path)

    def refused(code: int, said: str, *arguments: object) -> None:
        one_line(run("upscale", *arguments, "--weights", tiny), code, said)

    refused(2, "expected an output of .mp4", source, tmp_path / "out.xyz")
    refused(2, "expected an output of .mp4", source, tmp_path / "out.png")
    refused(2, "got the image in.png", image, out)
    refused(2, "the same", source, source)
    refused(2, "the same", source, tmp_path / "link.mp4")
    refused(2, "does not exist", tmp_path / "none.mp4", out)
    refused(2, "expected a video", tmp_path / "text.mp4", out)
    refused(4, "make it first", source, tmp_path / "none" / "out.mp4")
    refused(4, "got the folder", source, tmp_path / "folder.mp4")
    refused(2, "expected --codec auto", source, out, "--codec", "magic")
    refused(2, "expected --matrix", source, out, "--matrix", "bt2100")
    refused(2, "has no --crf", source, tmp_path / "out.mkv", "--codec", "ffv1", "--crf", 3)
    refused(2, "from 0 to 51, got 99", source, out, "--crf", 99)
    refused(2, "expected a --preset of libx264", source, out, "--preset", "magic")
    refused(3, "no NVENC", source, out, "--codec", "hevc_nvenc")
    refused(2, "expected a model of scale 2", source, out, "--scale", 2)
    refused(2, "--format is for images", source, out, "--format", "png")
    refused(2, "--crf is for videos", image, tmp_path / "out.png", "--crf", 3)
    refused(2, "--resume is for videos", image, tmp_path / "out.png", "--restart")
    assert names(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(run: Run, tmp_path: Path) -> None:
    source, folder = make(tmp_path / "in.mp4"), tmp_path / "out"
    folder.mkdir(mode=0o500)
    one_line(run("upscale", source, folder / "out.mp4"), 4, "no permission")


def test_into_a_folder_and_over_what_is_there(tmp_path: Path, run: Run, tiny: Path) -> None:
    source, folder = make(tmp_path / "in.mp4"), tmp_path / "out"
    folder.mkdir()
    (tmp_path / "link.mp4").symlink_to(folder / "in.mp4")
    (folder / "in.mp4").write_text("an older one")
    for target in (folder, tmp_path / "link.mp4"):
        code, _, err = run("upscale", source, target, "--weights", tiny, "--preset", "ultrafast")
        assert (code, err, names(folder)) == (0, "", ["in.mp4"])
    assert (tmp_path / "link.mp4").is_symlink()
    assert times(folder / "in.mp4") == times(source)


def runs(*each: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What became of runs of the command, in a process that forks them; those of a list go side by side."""
    script = Path(__file__).with_name("video_runs.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(each)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_signals_and_kills(tmp_path: Path, tiny: Path) -> None:
    """A first signal ends in good order, a second at once; after a kill the same command gives the same bytes."""
    source = make(tmp_path / "in.mp4", times=range(60), sounds=[Sound(seconds=2.4)], options={"g": "13"})
    dice = random.Random(os.urandom(8))

    def command(name: str) -> list[str]:
        # OpenVINO would keep what it compiles, which the limit of a file's size forbids as well.
        return [
            *(str(source), str(tmp_path / name), "--weights", str(tiny), "--preset", "ultrafast", "--backend", "eager")
        ]

    def kill(name: str) -> dict[str, Any]:
        return {"arguments": command(name), "after": {"frames": dice.randrange(1, 40)}, "signals": [9]}

    later: list[dict[str, Any]] = [
        {**kill("killed.mp4"), "after": 2.5 * dice.random()} for _ in range(19 if SOAK else 1)
    ]
    first, second, full, _, whole, *killed, again, after_second, after_full, after_kills = runs(
        [
            {"arguments": command("first.mp4"), "after": {"frames": 20}, "signals": [signal.SIGTERM]},
            {"arguments": command("second.mp4"), "after": {"frames": 20}, "signals": [signal.SIGINT, signal.SIGTERM]},
            {"arguments": command("full.mp4"), "limit": 60_000},
            kill("killed.mp4"),
        ],
        [{"arguments": command("whole.mp4")}, later[0]],
        *([each] for each in later[1:]),
        [{"arguments": command(f"{name}.mp4")} for name in ("first", "second", "full", "killed")],
    )
    assert (first["code"], first["said"].count("\n")) == (130, 1), first
    assert f" frames are in {tmp_path}/first.partial.mp4, the same command goes on from frame 13" in first["said"]
    found = re.search(r"stopped; (\d+) of \d+ frames are in", first["said"])
    assert found is not None
    assert 20 <= int(found[1]) < 60
    assert (second["code"], second["said"].count("\n")) == (130, 1), second
    assert "stopped at once; finished segments are in" in second["said"]
    assert second["took_s"] < 3
    assert not (tmp_path / "second.partial.mp4").exists()
    assert (full["code"], full["said"].count("\n")) == (4, 1), full
    assert "File too large" in full["said"]
    assert {run["code"] for run in killed} <= {-9, 0}
    for run, name in ((again, "first"), (after_second, "second"), (after_full, "full"), (after_kills, "killed")):
        assert (run["code"], whole["code"]) == (0, 0), run
        assert (tmp_path / f"{name}.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    assert [name for name in names(tmp_path) if "part" in name] == []


@pytest.mark.slow
def test_the_slowest_stage_decides(tmp_path: Path) -> None:
    """With a network that only waits, the whole job takes what the network takes."""
    source = make(tmp_path / "in.mp4", times=range(150), size=(160, 96))
    rates = []
    for _ in range(3 if SOAK else 2):
        summary = upscaled(source, tmp_path / "out.mp4", upscaler=Nearest(lambda: time.sleep(0.04)))
        rates.append(summary.busy_s["upscale"] / summary.seconds)
    assert max(rates) >= 0.95


@pytest.mark.slow
def test_memory_is_flat_over_a_thousand_frames(tmp_path: Path) -> None:
    source = make(tmp_path / "in.mp4", times=range(1000), size=(320, 180))
    held: list[int] = []

    def look(frames: int, total: int | None, busy_s: Any) -> None:
        if frames % 100 == 0:
            held.append(resident_bytes())

    upscaled(source, tmp_path / "out.mp4", progress=look)
    assert max(held[3:]) - held[2] < 24 << 20, held
