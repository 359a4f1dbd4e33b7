"""Reuse: the bytes of whole frames, whatever changed; less work where that is cheaper; results are the caller's."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import model_of
from records import cleaned

from srgan_fast import Upscaler
from srgan_fast import reuse as module
from srgan_fast.bench import reuse as bench
from srgan_fast.bench.claims import verify
from srgan_fast.bench.figures import reuse_figures
from srgan_fast.bench.record import content_id
from srgan_fast.bench.table import reuse_table
from srgan_fast.errors import MemoryBudgetError, ShapeError, UsageError
from srgan_fast.model import Generator, GeneratorConfig
from srgan_fast.reuse import Reuse

Patch = tuple[float, float, float, float]
sides = st.floats(0, 1)
# Where a frame differs from the one before, in parts of its size: scattered, overlapping, thin, whole, or nowhere.
patterns = st.lists(st.lists(st.tuples(sides, sides, sides, sides), max_size=6), min_size=1, max_size=4)


class Stand:
    """An upscaler that is quick and looks exactly `radius` far; its own clock has a second for 100,000 pixels."""

    scale, device, backend_name, precision = 2, "cpu", "stand", "fp32"

    def __init__(self, radius: int | None = 8) -> None:
        self.radius = radius
        self.calls: list[tuple[int, int]] = []
        self.now_s = 0.0
        self.whole, self.window_factor = 0, 1.0

    def __call__(self, frame: torch.Tensor, *, layout: str) -> torch.Tensor:
        assert layout == "HWC"
        height, width = frame.shape[:2]
        self.calls.append((height, width))
        self.now_s += height * width / 1e5 * (1.0 if height * width == self.whole else self.window_factor)
        return self.result(frame)

    def result(self, frame: torch.Tensor) -> torch.Tensor:
        r = self.radius or 0
        height, width = frame.shape[:2]
        padded = torch.nn.functional.pad(frame.to(torch.int32), (0, 0, r, r, r, r))
        corners = [(0, 0), (r, r), (0, 2 * r), (2 * r, r), (2 * r, 2 * r)]
        total = sum((i + 1) * padded[y : y + height, x : x + width] for i, (y, x) in enumerate(corners))
        assert isinstance(total, torch.Tensor)
        larger = (total % 251).repeat_interleave(2, 0).repeat_interleave(2, 1)
        return larger.to(frame.dtype)

    def timed(self, monkeypatch: pytest.MonkeyPatch) -> Stand:
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: self.now_s))
        return self


def reuse_of(upscaler: Any, **choices: Any) -> Reuse:
    return Reuse(upscaler, **choices)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256 if dtype == torch.uint8 else 65536, shape, generator=generator).to(dtype)


def changed(frame: torch.Tensor, patches: list[Patch], seed: int) -> torch.Tensor:
    frame = frame.clone()
    height, width = frame.shape[:2]
    for y, x, tall, wide in patches:
        top, left = int(y * (height - 1)), int(x * (width - 1))
        part = frame[top : top + 1 + int(tall**3 * height), left : left + 1 + int(wide**3 * width)]
        part.copy_(noise(*part.shape, seed=seed, dtype=frame.dtype))
    return frame


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(90, 220),
    width=st.integers(90, 220),
    radius=st.integers(0, 12),
    frames=patterns,
    dtype=st.sampled_from([torch.uint8, torch.uint16]),
    shared=st.booleans(),
    worth=st.sampled_from([0.9, 100.0]),  # windows even where they do not pay, so that all of them are held
    seed=st.integers(0, 1000),
)
def test_every_pattern(
    height: int, width: int, radius: int, frames: list[list[Patch]], dtype: Any, shared: bool, worth: float, seed: int
) -> None:
    stand = Stand(radius)
    reuse = reuse_of(stand, shared=shared)
    frame = noise(height, width, 3, dtype=dtype)
    kept = [(reuse(frame), stand.result(frame))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_WORTH", worth)
        for i, patches in enumerate(frames):
            frame = changed(frame, patches, seed + i)
            kept.append((reuse(frame), stand.result(frame)))
    assert reuse.reason == ""
    # All of them at the end: no result is written into once it is given.
    for got, want in kept:
        assert torch.equal(got, want)


def networks(folder: Path, precision: str, blocks: int, width: int) -> Upscaler:
    network = Generator(GeneratorConfig(blocks=blocks, width=width, kernel=5))
    return Upscaler(model_of(network, folder), backend="eager", device="cpu", precision=precision)


def hold(upscaler: Upscaler, height: int, width: int, examples: int, dtype: torch.dtype = torch.uint8) -> None:
    """Random patterns by a network: reuse gives the bytes of whole frames, and some of them by windows."""
    reuse = Reuse(upscaler)
    state = {"frame": noise(height, width, 3, dtype=dtype)}
    reuse(state["frame"])

    # By the seed 0 that the frame has the first pattern of all, one pixel in the corner, would change nothing.
    @settings(max_examples=examples, deadline=None, database=None)
    @given(patches=st.lists(st.tuples(sides, sides, sides, sides), min_size=1, max_size=3), seed=st.integers(1, 1000))
    def holds(patches: list[Patch], seed: int) -> None:
        frame = changed(state["frame"], patches, seed)
        state["frame"] = frame
        assert torch.equal(reuse(frame), upscaler(frame, layout="HWC"))
        assert reuse.reason == ""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_WORTH", 100.0)
        holds()
    assert module._sizes_for(upscaler, state["frame"]).tried


@pytest.mark.parametrize(
    ("precision", "dtype", "examples"),
    [("fp32", torch.uint8, 8), ("fp32", torch.uint16, 4), ("bf16", torch.uint8, 2)],
)
def test_eager_passes(tmp_path: Path, precision: str, dtype: torch.dtype, examples: int) -> None:
    hold(networks(tmp_path, precision, 1, 16), 100, 145, examples, dtype)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "examples"), [("fp32", 6), ("bf16", 1)])
def test_srresnet_passes(precision: str, examples: int) -> None:
    upscaler = Upscaler("srresnet_x4", backend="eager", device="cpu", precision=precision)
    hold(upscaler, 200, 290, examples)


def test_what_did_not_change_costs_nothing() -> None:
    stand = Stand()
    reuse = reuse_of(stand, shared=True)
    frame = noise(120, 130, 3)
    first = reuse(frame)
    assert reuse(frame.clone()) is first
    own = reuse_of(stand)
    one, two = own(frame), own(frame)
    assert stand.calls == [(120, 130)] * 2
    assert torch.equal(one, two)
    assert reuse.saved == own.saved == 0.5
    # What the caller does with results, or with the frame that it gave, is its own affair.
    one.zero_()
    two.zero_()
    given = frame.clone()
    own(given)
    given.zero_()
    assert torch.equal(own(frame), stand.result(frame))


@pytest.mark.parametrize("radius", [18, 40])
@pytest.mark.parametrize(
    ("patches", "times"),
    [
        # A tenth of the frame: compact, as a strip, as two rectangles.
        ([(200, 428, 300, 704)], 3.0),
        ([(304, 376, 0, 1280)], 2.0),
        ([(40, 201, 64, 350), (500, 661, 900, 1186)], 2.0),
    ],
)
def test_less_is_computed(monkeypatch: Any, radius: int, patches: list[tuple[int, ...]], times: float) -> None:
    """At 1280x720, with the radii of srresnet_x4_small and srresnet_x4, by pixels; a bench has the seconds."""
    stand = Stand(radius).timed(monkeypatch)
    stand.whole = 720 * 1280
    reuse = reuse_of(stand)
    frame = noise(720, 1280, 3)
    reuse(frame)
    spent = []
    for seed in range(2):
        for y0, y1, x0, x1 in patches:
            frame[y0:y1, x0:x1] = noise(y1 - y0, x1 - x0, 3, seed=seed + 1)
        start = stand.now_s
        got = reuse(frame)
        spent.append(stand.now_s - start)
    assert torch.equal(got, stand.result(frame))
    whole_s = 720 * 1280 / 1e5
    # The first has the trial too: a whole frame, and the windows once more.
    assert whole_s < spent[0] < 2.5 * whole_s
    assert whole_s / spent[-1] >= times


@pytest.mark.parametrize("factor", [1.0, 6.0])
def test_never_much_slower(monkeypatch: Any, factor: float) -> None:
    """Where all changes, and where windows turn out slow: after the trials whole frames are taken."""
    stand = Stand(18).timed(monkeypatch)
    stand.whole, stand.window_factor = 360 * 640, factor
    reuse = reuse_of(stand)
    frame = noise(360, 640, 3)
    reuse(frame)
    part = slice(None) if factor == 1.0 else slice(100, 150)
    for seed in range(10):
        frame[part, 50:640] = noise(*frame[part, 50:640].shape, seed=seed)
        reuse(frame)
    before = stand.now_s
    for seed in range(5):
        frame[part, 50:640] = noise(*frame[part, 50:640].shape, seed=100 + seed)
        assert torch.equal(reuse(frame), stand.result(frame))
    assert stand.now_s - before <= 5 * 1.02 * stand.whole / 1e5


class Wandering(Stand):
    """Its results depend on the size of what it is given."""

    def result(self, frame: torch.Tensor) -> torch.Tensor:
        out = super().result(frame)
        out[51::64, 51::64] += frame.shape[1] % 2
        return out


def test_a_backend_that_fails_computes_whole_frames_and_says_why() -> None:
    stand = Wandering()
    reuse = reuse_of(stand)
    frame = noise(201, 301, 3)
    reuse(frame)
    for seed in (1, 2):
        frame[:8, :8] = noise(8, 8, 3, seed=seed)
        assert torch.equal(reuse(frame), stand.result(frame))
    assert "stand fp32 gives a window of 96x96 other bytes than a whole frame of 301x201" in reuse.reason
    assert stand.calls.count((96, 96)) == 1
    calls = len(stand.calls)
    reuse(frame)
    assert len(stand.calls) == calls


def test_a_network_that_sees_the_whole_frame() -> None:
    stand = Stand(None)
    reuse = reuse_of(stand)
    frame = noise(200, 200, 3)
    reuse(frame)
    reuse(frame)
    frame[0, 0] += 1
    reuse(frame)
    assert stand.calls == [(200, 200)] * 2
    assert "whole frame" in reuse.reason


def test_an_error_leaves_nothing_half_done() -> None:
    class Failing(Stand):
        def result(self, frame: torch.Tensor) -> torch.Tensor:
            if fails and len(self.calls) > fails[0]:
                raise RuntimeError("no more")
            return super().result(frame)

    fails: list[int] = []
    stand = Failing()
    reuse = reuse_of(stand)
    frame = noise(200, 400, 3)
    reuse(frame)
    later = frame.clone()
    later[:9, :9] += 1
    later[150:159, 350:359] += 1
    fails.append(len(stand.calls) + 3)  # the trials are done, and one of two windows
    with pytest.raises(RuntimeError, match="no more"):
        reuse(later)
    fails.clear()
    assert torch.equal(reuse(later), stand.result(later))
    assert torch.equal(reuse(frame), stand.result(frame))


def test_a_budget_without_room_for_the_frame_before() -> None:
    class Tight(Stand):
        def result(self, frame: torch.Tensor) -> torch.Tensor:
            if reuse._hr is not None:
                raise MemoryBudgetError("no room")
            return super().result(frame)

    stand = Tight()
    reuse = reuse_of(stand)
    for seed in (0, 1, 2):
        frame = noise(100, 100, 3, seed=seed)
        assert torch.equal(reuse(frame), Stand().result(frame))
    assert "budget" in reuse.reason


def test_sizes_may_change_and_wrong_frames_are_refused() -> None:
    stand = Stand()
    reuse = reuse_of(stand)
    for shape in ((100, 120), (120, 100), (1, 1), (100, 120)):
        frame = noise(*shape, 3)
        assert torch.equal(reuse(frame), stand.result(frame))
    assert reuse.saved == 0
    for wrong in (noise(2, 3, 4), noise(1, 4, 4, 3), torch.zeros(4, 4, 3)):
        with pytest.raises(ShapeError, match=r"\[h, w, 3\]"):
            reuse(wrong)
    with pytest.raises(UsageError, match="auto or off"):
        reuse_of(stand, mode="on")
    off = reuse_of(stand, mode="off")
    assert torch.equal(off(frame), off(frame))
    assert (off.saved, off.reason) == (0, "it was turned off")


def test_what_is_known_does_not_keep_an_upscaler() -> None:
    stand = Stand()
    reuse = reuse_of(stand)
    frame = noise(150, 150, 3)
    reuse(frame)
    frame[0, 0] += 1
    reuse(frame)
    gone = weakref.ref(stand)
    del reuse, stand
    gc.collect()
    assert gone() is None


def test_the_suite(tiny: Path, run: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(bench, "_WARM_UP", 1)
    out = tmp_path / "records.jsonl"
    code, said, err = run("bench", "reuse", "--model", tiny, "--size", "130x110", "--runs", 1, "--json", out)
    assert code == 0, err
    records = cleaned([json.loads(line) for line in out.read_text().splitlines()])
    assert [one["pattern"] for one in records] == list(bench.PATTERNS)
    for one in records:
        assert one["quality"]["gate"] == "pass"
        assert one["derived"] == reuse_figures(one["raw"])
        assert one["pattern"] in said
        verify(one, records)
    assert records[-1]["derived"]["speedup"] > 1  # of nothing
    records[0]["derived"]["speedup"] *= 2
    records[0]["id"] = content_id(records[0])
    with pytest.raises(ValueError, match="speedup"):
        verify(records[0], records)


def test_a_picture_that_differs_has_no_figures(tiny: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(bench, "PATTERNS", {"nothing": ()})
    monkeypatch.setattr(bench.Reuse, "__call__", lambda self, frame: torch.zeros(4 * len(frame), 4 * frame.shape[1], 3))
    (one,) = bench.measure(str(tiny), 16, 16, 1, "cpu")
    assert (one["quality"]["gate"], one["derived"]) == ("fail", {})
    assert "gate failed" in reuse_table([one]).text()
    with pytest.raises(ValueError, match="at least 1 run"):
        next(bench.measure(str(tiny), 16, 16, 0, "cpu"))


def test_a_video_has_the_same_bytes(tmp_path: Path, run: Any) -> None:
    """A square that moves over a still picture, by the command, with reuse and without."""
    network = Generator(GeneratorConfig(blocks=1, width=16, kernel=5))
    model_of(network, tmp_path)
    with av.open(tmp_path / "in.mkv", "w") as out:
        stream = out.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 240, 200, "yuv444p"
        scene = noise(200, 240, 3).numpy()
        for i in range(4):
            frame = scene.copy()
            frame[8:16, 8 * i : 8 * i + 8] = 255
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode(None))
    said = {}
    for reuse in ("auto", "off"):
        arguments = ("--weights", tmp_path / "network.safetensors", "--backend", "eager", "--precision", "fp32")
        target = tmp_path / f"{reuse}.mp4"
        code, said[reuse], err = run("upscale", tmp_path / "in.mkv", target, *arguments, "--reuse", reuse)
        assert code == 0, err
    assert (tmp_path / "auto.mp4").read_bytes() == (tmp_path / "off.mp4").read_bytes()
    assert "of the pixels had not changed" in said["auto"]
    assert "reused" not in said["off"]
    assert run("upscale", tmp_path / "in.mkv", tmp_path / "out.mp4", "--reuse", "maybe")[0] == 2
