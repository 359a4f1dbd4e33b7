"""Segments over workers: the same bytes whoever renders them, and nothing lost when one of them dies."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import nearest
import pytest
from clips import make
from nearest import Nearest

from srgan_fast.errors import DistributedError, InputError, Interrupted, OutputError, UsageError
from srgan_fast.video import job, schedule, segments
from srgan_fast.video.job import Job, Traits, VideoOptions, render, upscale_video
from srgan_fast.video.schedule import upscale_videos
from srgan_fast.video.summary import Summary
from srgan_fast.video.workers import (
    Failed,
    Gone,
    Place,
    Processes,
    Ready,
    Renderer,
    Request,
    Word,
    portable,
)

QUICK = VideoOptions(preset="ultrafast")
TRAITS = Traits(2, "none", "nearest", "fp32")
Fate = Callable[[int, Request], Word | None]


@pytest.fixture(autouse=True)
def _short(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of a quarter of a second, one keyframe each; one thread, as on pictures this small more only wait."""
    monkeypatch.setattr(job, "cut", lambda keyframes, time_base: segments.cut(keyframes, time_base, 0.2))


class Here:
    """Workers in this process, of which one works at a time; `fate` is a word that comes instead of a segment."""

    def __init__(
        self, count: int, fate: Fate = lambda worker, request: None, *, begin: list[Word] | None = None
    ) -> None:
        self.count, self.used, self._fate = count, False, fate
        words = begin or [Ready(TRAITS, f"worker {n}") for n in range(count)]
        self._words: deque[tuple[int, Word]] = deque(enumerate(words))
        self._requests: deque[tuple[int, Request]] = deque()
        self._renderer = Renderer(Nearest)
        self._stopping = False
        self._begin = begin
        self.given: list[tuple[int, str, int]] = []
        self.replaced: list[int] = []

    def begin(self, worker: int, request: Request) -> None:
        self.given.append((worker, request.task.source.name, request.segment.index))
        self._requests.append((worker, request))

    def listen(self, seconds: float) -> list[tuple[int, Word]]:
        if self._words:
            return [self._words.popleft()]
        if not self._requests:
            time.sleep(0.01)
            return []
        worker, request = self._requests.popleft()
        said: list[Any] = []
        word = self._fate(worker, request) or self._renderer.render(request, said.append, lambda: self._stopping)
        return [*((worker, frames) for frames in said), (worker, word)]

    def replace(self, worker: int) -> None:
        self.replaced.append(worker)
        self._words.append((worker, self._begin[worker] if self._begin else Ready(TRAITS, f"worker {worker}")))

    def stop(self) -> None:
        self._stopping = True

    def close(self) -> None:
        pass


def clip(path: Path, frames: int = 30) -> Path:
    return make(path, times=range(frames))


def whole(source: Path) -> bytes:
    """What this process makes of a video by itself."""
    target = source.with_name(f"whole_{source.name}")
    upscale_video(source, target, Nearest(), QUICK)  # type: ignore[arg-type]
    return target.read_bytes()


def outcomes(pairs: list[tuple[Path, Path]], crew: Any, **more: Any) -> dict[str, Summary | Exception]:
    return {each.source.name: each.result for each in upscale_videos(pairs, crew, QUICK, **more)}


def test_segments_of_many_videos_go_out_in_order_and_give_the_same_bytes(tmp_path: Path) -> None:
    sources = [clip(tmp_path / name, frames) for name, frames in (("a.mp4", 30), ("b.mov", 12), ("c.mp4", 18))]
    crew = Here(2)
    seen: list[tuple[int, int | None]] = []
    pairs = [(source, tmp_path / f"out_{source.name}") for source in sources]
    results = outcomes(pairs, crew, progress=lambda frames, total, busy_s: seen.append((frames, total)))
    for source, target in pairs:
        summary = results[source.name]
        assert isinstance(summary, Summary), summary
        assert target.read_bytes() == whole(source)
        assert summary.target == target
    assert [given[1:] for given in crew.given] == [
        *(("a.mp4", i) for i in range(5)),
        *(("b.mov", i) for i in range(2)),
        *(("c.mp4", i) for i in range(3)),
    ]
    assert {worker for worker, *_ in crew.given} == {0, 1}
    assert seen[-1] == (60, None)
    assert [frames for frames, _ in seen] == sorted(frames for frames, _ in seen)
    assert not list(tmp_path.glob("*.parts"))
    with pytest.raises(UsageError, match="have had no videos yet"):
        outcomes(pairs, crew)


@pytest.mark.parametrize("word", [Gone("killed by SIGKILL"), Failed(RuntimeError("CUDA error: ECC"))])
def test_a_segment_goes_to_another_worker(tmp_path: Path, word: Word, caplog: pytest.LogCaptureFixture) -> None:
    source, target = clip(tmp_path / "in.mp4"), tmp_path / "out.mp4"
    once = [word]
    crew = Here(2, lambda worker, request: once.pop() if request.segment.index == 1 and once else None)
    with caplog.at_level(logging.WARNING):
        summary = outcomes([(source, target)], crew)["in.mp4"]
    assert isinstance(summary, Summary), summary
    assert target.read_bytes() == whole(source)
    first, second = (worker for worker, _, index in crew.given if index == 1)
    assert first != second
    assert crew.replaced == [first]
    assert f"worker {first} (worker {first}) ended over segment 1 of {source}" in caplog.text


def test_a_segment_that_ends_every_worker_fails_its_video_alone(tmp_path: Path) -> None:
    bad, good = clip(tmp_path / "bad.mp4"), clip(tmp_path / "good.mp4")

    def fate(worker: int, request: Request) -> Word | None:
        return Gone("killed") if (request.task.source, request.segment.index) == (bad, 2) else None

    crew = Here(2, fate)
    results = outcomes([(bad, tmp_path / "out_bad.mp4"), (good, tmp_path / "out_good.mp4")], crew)
    assert isinstance(results["bad.mp4"], DistributedError)
    assert f"3 workers ended over segment 2 of {bad}, the last: killed" in str(results["bad.mp4"])
    assert [given[1:] for given in crew.given].count(("bad.mp4", 2)) == schedule.TRIES
    assert (tmp_path / "out_good.mp4").read_bytes() == whole(good)
    # What is finished of it is there for the next run.
    crew = Here(1)
    summary = outcomes([(bad, tmp_path / "out_bad.mp4")], crew)["bad.mp4"]
    assert isinstance(summary, Summary)
    assert summary.resumed >= 12
    assert (tmp_path / "out_bad.mp4").read_bytes() == whole(bad)


def test_a_worker_that_dies_over_everything_is_given_up(tmp_path: Path) -> None:
    source, target = clip(tmp_path / "in.mp4", 60), tmp_path / "out.mp4"
    crew = Here(2, lambda worker, request: Gone("killed") if worker == 1 else None)
    assert isinstance(outcomes([(source, target)], crew)["in.mp4"], Summary)
    assert crew.replaced == [1, 1]
    assert target.read_bytes() == whole(source)


def test_no_worker_can_begin(tmp_path: Path) -> None:
    source = clip(tmp_path / "in.mp4")
    crew = Here(2, begin=[Gone("exit code 1"), Gone("exit code 1")])
    with pytest.raises(DistributedError, match=r"no worker is left: the last ended 3 times in a row, .* exit code 1"):
        outcomes([(source, tmp_path / "out.mp4")], crew)
    crew = Here(1, begin=[Failed(InputError("no such weights"))])
    with pytest.raises(InputError, match="no such weights"):
        outcomes([(source, tmp_path / "out.mp4")], crew)
    crew = Here(2, begin=[Ready(TRAITS, "here"), Ready(replace(TRAITS, precision="bf16"), "there")])
    with pytest.raises(DistributedError, match=r"got precision fp32 and bf16 \(here; there\)"):
        outcomes([(source, tmp_path / "out.mp4")], crew)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_what_is_wrong_with_one_video_does_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    full, good = clip(tmp_path / "full.mp4"), clip(tmp_path / "good.mp4")
    crew = Here(2, lambda _, request: Failed(OutputError("no space")) if request.task.source == full else None)
    sources = (tmp_path / "text.mp4", full, good)
    results = outcomes([(source, tmp_path / f"out_{source.name}") for source in sources], crew)
    assert isinstance(results["text.mp4"], InputError)
    assert isinstance(results["full.mp4"], OutputError)
    assert isinstance(results["good.mp4"], Summary)
    assert crew.replaced == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full.mp4", "good.mp4", "out_good.mp4", "text.mp4"]


def test_a_stop_ends_all_workers_and_the_same_call_goes_on(tmp_path: Path) -> None:
    source, target = clip(tmp_path / "in.mp4"), tmp_path / "out.mp4"
    crew = Here(2)
    with pytest.raises(Interrupted, match=r"stopped; \d+ of 30 frames are in .*out\.partial\.mp4, .* from frame \d+"):
        outcomes([(source, target)], crew, stop=lambda: len(crew.given) >= 3)
    assert (tmp_path / "out.partial.mp4").exists()
    assert not target.exists()
    summary = outcomes([(source, target)], Here(3))["in.mp4"]
    assert isinstance(summary, Summary)
    assert 6 <= summary.resumed < 30
    assert target.read_bytes() == whole(source)
    with pytest.raises(Interrupted, match="stopped with 2 of 2 videos unfinished, the same command goes on"):
        outcomes([(source, target), (source, tmp_path / "x.mp4")], Here(1), stop=iter([False, False, True]).__next__)


def test_a_worker_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    source = clip(tmp_path / "in.mp4")
    with Job(source, tmp_path / "out.mp4", TRAITS, QUICK) as planned:
        elsewhere = replace(planned.task, folder=segments.Folder(tmp_path / "other"))
        said = Renderer(Nearest).render(Request(elsewhere, planned.todo[0]), print, lambda: False)
    assert isinstance(said, Failed)
    assert isinstance(said.error, DistributedError)
    assert f"cannot see {tmp_path / 'other' / 'manifest.json'}; every machine needs the same folders" in str(said.error)
    with pytest.raises(DistributedError, match="cannot see"):
        outcomes([(source, tmp_path / "out.mp4")], Here(2, lambda worker, request: said))


def test_parts_that_show_up_late_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = clip(tmp_path / "in.mp4"), tmp_path / "out.mp4"
    with Job(source, target, TRAITS, QUICK) as planned:
        assert render(planned.task, Nearest(), planned.todo)  # type: ignore[arg-type]
        record = planned.task.folder.path / "000003.json"
        hidden = record.rename(tmp_path / "hidden")
        monkeypatch.setattr(job, "_SEEN_S", 0.0)
        with pytest.raises(DistributedError, match=r"expected 5 finished segments in .*, got 4"):
            planned.finish(job.Effort())
        monkeypatch.setattr(job, "_SEEN_S", 60.0)
        back = threading.Timer(0.3, lambda: hidden.rename(record))
        back.start()
        assert planned.finish(job.Effort()).frames == 30
        back.join()
    assert target.read_bytes() == whole(source)


def test_one_that_was_given_up_for_dead_does_no_harm(tmp_path: Path) -> None:
    """It goes on in the middle of a segment that another one has rendered in the meantime."""
    source, target = clip(tmp_path / "in.mp4"), tmp_path / "out.mp4"
    halfway, on = threading.Event(), threading.Event()
    count = 0

    def pause() -> None:
        nonlocal count
        count += 1
        if count == 4:
            halfway.set()
            assert on.wait(30)

    with Job(source, target, TRAITS, QUICK) as planned:
        task, first = planned.task, planned.todo[:1]
        ghost = threading.Thread(target=render, args=(task, Nearest(pause), first))
        ghost.start()
        assert halfway.wait(30)
        assert render(task, Nearest(), first)  # type: ignore[arg-type]
        on.set()
        ghost.join()
        assert render(task, Nearest(), planned.todo[1:])  # type: ignore[arg-type]
        assert planned.finish(job.Effort()).frames == 30
    assert target.read_bytes() == whole(source)


def test_what_a_killed_process_left_half_written_goes(tmp_path: Path) -> None:
    source, target = clip(tmp_path / "in.mp4"), tmp_path / "out.mp4"
    with Job(source, target, TRAITS, QUICK) as planned:
        assert render(planned.task, Nearest(), planned.todo[:1])  # type: ignore[arg-type]
        left = planned.task.folder.fresh(planned.todo[1])
        left.write_bytes(b"half")
    with Job(source, target, TRAITS, QUICK) as planned:
        assert (planned.earlier, left.exists()) == (6, False)


def test_errors_travel() -> None:
    class Own(Exception):
        pass

    assert isinstance(portable(OutputError("full")), OutputError)
    assert repr(portable(Own("local"))) == "RuntimeError('Own: local')"


class Watched(Processes):
    """Knows the process that was given a segment last."""

    pids: dict[int, int]
    last = 0

    def begin(self, worker: int, request: Request) -> None:
        self.last = worker
        super().begin(worker, request)

    def listen(self, seconds: float) -> list[tuple[int, Word]]:
        said = super().listen(seconds)
        found = {worker: int(word.where.split()[1]) for worker, word in said if isinstance(word, Ready)}
        self.pids = getattr(self, "pids", {}) | found
        return said


def test_a_process_that_is_killed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two processes, of which one is killed in the middle of a segment: the bytes are those of one without."""
    source, target = clip(tmp_path / "in.mp4", 48), tmp_path / "out.mp4"
    killed: list[int] = []

    def kill(frames: int, total: int | None, busy_s: Any) -> None:
        assert total == 48
        if frames >= 8 and not killed:
            killed.append(crew.pids[crew.last])
            os.kill(killed[0], signal.SIGKILL)

    with Watched(partial(nearest.slow, 0.02), [Place(threads=1)] * 2) as crew:
        (outcome,) = upscale_videos([(source, target)], crew, QUICK, progress=kill)
        assert len(multiprocessing.active_children()) == 2
    assert multiprocessing.active_children() == []
    assert isinstance(outcome.result, Summary), outcome.result
    assert f"process {killed[0]} on " in caplog.text
    assert "ended over segment" in caplog.text
    assert target.read_bytes() == whole(source)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4", "whole_in.mp4"]


def test_gpus_are_named_among_those_that_are_visible() -> None:
    from srgan_fast.video.workers import _only

    assert [_only(1, visible) for visible in (None, "", "2,3", "GPU-a, GPU-b")] == ["1", "1", "3", "GPU-b"]
