"""`srgan-fast upscale` of folders of videos, by several processes, and by a Ray cluster."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from clips import make
from conftest import one_line
from PIL import Image

from srgan_fast import Upscaler
from srgan_fast.errors import UsageError
from srgan_fast.video import job, segments
from srgan_fast.video.job import VideoOptions, upscale_video
from srgan_fast.video.schedule import upscale_videos
from srgan_fast.video.summary import Summary

Run = Callable[..., tuple[int, str, str]]
SOAK = bool(os.environ.get("SRGAN_FAST_SOAK"))


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_folder_of_videos(run: Run, tiny: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    (source / "sub").mkdir(parents=True)
    make(source / "a.mp4", times=range(3))
    make(source / "sub" / "b.avi", "mpeg4", times=range(4))
    (source / "x.mp4.parts").mkdir()
    (source / "x.mp4.parts" / "000000.nut").touch()
    arguments = ("upscale", source, target, "--weights", tiny, "--preset", "ultrafast")
    code, out, err = run(*arguments)
    assert (code, err) == (0, "")
    assert files(target) == ["a.mp4", "sub/b.mkv"]
    assert "3 frames of 256x192" in out
    assert "2 upscaled, 0 finished before, 0 failed, 7 frames of video" in out
    assert "nothing to do: all 2 videos are finished" in run(*arguments)[1]

    # One that is broken and a picture: all else is done, and the exit code says that something is not.
    (source / "0.mp4").write_text("no video")
    Image.new("RGB", (4, 4)).save(source / "p.png")
    code, out, err = run(*arguments)
    assert code == 2
    assert files(target) == ["a.mp4", "p.png", "sub/b.mkv"]
    assert "1 upscaled, 2 finished before, 1 failed" in out
    assert [line.split(":")[0] for line in err.splitlines()] == ["failed", "srgan-fast"]
    assert "1 of 2 files failed, the others are done; first: expected a video" in err


def test_options_that_are_refused(run: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make(tmp_path / "in.mp4", times=range(3))
    Image.new("RGB", (4, 4)).save(tmp_path / "in.png")
    monkeypatch.setitem(sys.modules, "ray", None)

    def refused(code: int, said: str, *options: object, given: Path = source) -> None:
        one_line(run("upscale", given, tmp_path / f"out{given.suffix}", "--weights", tiny, *options), code, said)

    refused(3, "--cluster ray needs Ray", "--cluster", "ray")
    refused(2, "expected --cluster ray, got slurm", "--cluster", "slurm")
    refused(2, "expected --gpus as different numbers such as 0,1, got 0,x", "--gpus", "0,x")
    refused(2, "expected --gpus as different numbers", "--gpus", "0,0")
    refused(2, "leave --workers out", "--gpus", "0", "--workers", 2)
    refused(2, "leave --gpus out", "--gpus", "0", "--cluster", "ray")
    refused(2, "leave one out", "--gpus", "0", "--device", "cpu")
    refused(2, "Ray chooses the GPU", "--cluster", "ray", "--device", "cuda:1")
    refused(2, "--workers of 1 or more, got 0", "--workers", 0)
    refused(2, "--workers up to the", "--workers", 4096, "--device", "cpu")
    refused(2, "--workers is for videos", "--workers", 2, given=tmp_path / "in.png")
    refused(2, "has images too (in.png), and --workers is for videos", "--workers", 2, given=tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    refused(3, "--gpus 1,2 was asked for, but torch sees 2 GPUs", "--gpus", "1,2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "in.png"]


def test_how_actors_share_a_cluster() -> None:
    from srgan_fast.video.cluster import _shares

    machines = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 6.0}, {"CPU": 0.0}]
    assert _shares(machines, None, gpus=True) == (2, 4)
    assert _shares(machines, 1, gpus=True) == (1, 4)
    assert _shares(machines, None, gpus=False) == (2, 6)
    assert _shares(machines, 3, gpus=False) == (3, 4)
    assert _shares(machines, 14, gpus=False) == (14, 1)
    for workers, gpus, said in ((3, True, "2 GPUs"), (15, False, "14 cores")):
        with pytest.raises(UsageError, match=said):
            _shares(machines, workers, gpus)


COMMAND = (
    "from srgan_fast.video import job, segments\n"
    "job.cut = lambda keyframes, time_base: segments.cut(keyframes, time_base, 0.2)\n"
    "from srgan_fast.cli import main\nmain()"
)


def started(source: Path, target: Path, tiny: Path) -> subprocess.Popen[str]:
    """The command with two processes, in a group of its own as in a terminal, with short segments."""
    arguments = ["upscale", source, target, "--weights", tiny, "--preset", "ultrafast", "--backend", "eager"]
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *map(str, arguments), "--device", "cpu", "--workers", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finished_segments(target: Path) -> int:
    return len(list(target.with_name(target.name + ".parts").glob("0*.json")))


def until(true: Callable[[], object], seconds: float = 120) -> None:
    give_up = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def every_process() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended in the meantime
        return b""


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two workers need two cores")
def test_the_command_with_processes_is_stopped_and_killed(tmp_path: Path, tiny: Path) -> None:
    source, target = make(tmp_path / "in.mp4", times=range(400)), tmp_path / "out.mp4"
    process = started(source, target, tiny)
    until(lambda: finished_segments(target) >= 3)
    os.killpg(process.pid, signal.SIGINT)  # to all of them, as a terminal does
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err.count("\n")) == (130, 1), err
    assert " of 400 frames are in " in err
    assert (tmp_path / "out.partial.mp4").exists()

    for _ in range(10 if SOAK else 1):
        before = finished_segments(target)
        process = started(source, target, tiny)
        while finished_segments(target) <= before and process.poll() is None:
            time.sleep(0.02)
        time.sleep(random.random() * 0.2)
        workers = children(process.pid) if process.poll() is None else []
        process.kill()
        process.communicate()
        until(lambda workers=workers: not any(Path(f"/proc/{pid}").exists() for pid in workers), 10)
    process = started(source, target, tiny)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, ""), err
    assert "400 frames of 256x192" in out
    assert not list(tmp_path.glob("*.parts"))

    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // 2))
    alone = tmp_path / "alone.mp4"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "cut", lambda keyframes, time_base: segments.cut(keyframes, time_base, 0.2))
        upscale_video(source, alone, Upscaler(tiny, backend="eager", device="cpu"), VideoOptions(preset="ultrafast"))
    assert target.read_bytes() == alone.read_bytes()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("what", ["actor", "machine"])
def test_what_ray_loses(what: str, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An actor is killed, or all of a machine of two that one machine plays: the bytes are those of this process."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    from srgan_fast.video.cluster import Actors

    monkeypatch.setattr(job, "cut", lambda keyframes, time_base: segments.cut(keyframes, time_base, 0.2))
    handler = signal.getsignal(signal.SIGTERM)
    source, target = make(tmp_path / "in.mp4", times=range(300)), tmp_path / "out.mp4"
    make_one, options = partial(Upscaler, tiny, backend="eager", device="cpu"), VideoOptions(preset="ultrafast")
    lost: list[int] = []

    def lose(frames: int, total: int | None, busy_s: Any) -> None:
        if frames >= 40 + 60 * len(lost) and len(lost) < (3 if SOAK and what == "actor" else 1):
            lost.append(frames)
            if what == "machine":
                cluster.remove_node(machines[0], allow_graceful=False)
            else:
                mine = (pid for pid in every_process() if command_of(pid).startswith(b"ray::_Actor"))
                os.kill(next(mine), signal.SIGKILL)

    if what == "machine":
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        machines = [cluster.add_node(num_cpus=1) for _ in range(2)]
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        with Actors(make_one, 2, gpus=False) as crew:
            assert what == "machine" or signal.getsignal(signal.SIGTERM) is handler
            (outcome,) = upscale_videos([(source, target)], crew, options, progress=lose)
    finally:
        if what == "machine":
            ray.shutdown()
            cluster.shutdown()
        signal.signal(signal.SIGTERM, handler)
    assert isinstance(outcome.result, Summary), outcome.result
    assert lost
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    upscale_video(source, tmp_path / "alone.mp4", make_one(), options)
    torch.set_num_threads(before)
    assert target.read_bytes() == (tmp_path / "alone.mp4").read_bytes()
