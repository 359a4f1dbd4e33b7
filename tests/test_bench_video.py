"""The video suite: every way through a clip in one record, held together by its pictures and its raw numbers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from records import cleaned
from torch import Tensor

from srgan_fast.bench import parts, roundtrip, video
from srgan_fast.bench.claims import verify
from srgan_fast.bench.figures import video_figures
from srgan_fast.bench.record import content_id
from srgan_fast.bench.table import video_table
from srgan_fast.cli.bench import bench
from srgan_fast.errors import SRGANFastError
from srgan_fast.model import Generator, GeneratorConfig
from srgan_fast.video.encoder import Options, choose, output_of
from srgan_fast.video.job import Task, render
from srgan_fast.video.pipeline import Pipeline
from srgan_fast.video.segments import Folder, Segment
from srgan_fast.video.source import Source
from srgan_fast.video.stages import End
from srgan_fast.weights import save

Record = dict[str, Any]

ALONE = ("decode", "upload", "download", "queues", "encode libx264")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save(path, Generator(GeneratorConfig(blocks=1, width=4)), name="tiny", recipe={})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield str(path)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def measured(tiny: str) -> Record:
    return video.measure(tiny, 16, 24, 5, 2, "cpu", "fp32", with_peers=True)


def test_every_way_is_in_one_sound_record(measured: Record) -> None:
    (one,) = cleaned([measured])
    verify(one, [one])
    ways = {"model", "null", "sleep", "libx264", "floor libx264", "png", *(f"alone {name}" for name in ALONE)}
    assert set(one["raw"]["seconds"]) == set(one["raw"]["cpu_s"]) == ways | ({"opencv"} - set(one["left_out"]))
    assert {len(samples) for samples in one["raw"]["seconds"].values()} == {2}
    assert one["quality"]["gate"] == "pass"
    assert set(one["quality"]["frames"].values()) == {5}
    assert one["quality"]["luma_psnr_db"]["libx264"] > 30
    assert one["codecs"] == {"libx264": {"crf": "18", "preset": "medium"}}
    assert set(one["raw"]["busy_s"]["libx264"]) == {"decode", "upload", "upscale", "download", "encode"}
    said = video_table(one).text()
    assert "null of cores" in said
    assert "alone encode libx264" in said
    one["derived"]["null_of_model"] += 0.1
    one["id"] = content_id(one)
    with pytest.raises(ValueError, match="null_of_model"):
        verify(one, [one])


def test_figures_follow_from_seconds() -> None:
    wall = {"model": 4.0, "null": 5.0, "sleep": 4.4, "libx264": 8.0, "floor libx264": 2.0, "png": 16.0}
    wall |= {"alone decode": 1.0, "alone upload": 0.1, "alone download": 0.3, "alone queues": 0.1}
    wall["alone encode libx264"] = 6.0
    cpu = {**dict.fromkeys(wall, 0.0), "model": 7.0, "alone decode": 1.5, "alone download": 0.5}
    cpu["alone encode libx264"] = 5.0
    raw = {
        "frames": 10,
        "cores": 2,
        "seconds": {name: [each, 9 * each, each / 2] for name, each in wall.items()},
        "cpu_s": {name: [each + 1, each] for name, each in cpu.items()},
        "sleep_s": 0.4,
        "held_bytes": [100, 300, 200],
        "peak_bytes": 2**29,
        "gpu_busy_s": 3.0,
        "gpu_wall_s": 4.0,
    }
    found = video_figures(raw)
    assert found == pytest.approx(
        {
            **{f"{name}_fps": 10 / wall[name] for name in ("model", "null", "sleep", "libx264", "png")},
            "floor_libx264_fps": 5.0,
            "null_of_model": 0.8,
            "null_of_cores": 9.0 / 2 / 5,
            "conversion_share": 0.1,
            "sleep_of_slowest": 4.0 / 4.4,
            "libx264_of_cores": 14.0 / 2 / 8,
            "libx264_of_slowest": 0.75,
            "libx264_of_floor": 0.25,
            "speedup_vs_png": 2.0,
            "gpu_busy": 0.75,
            "peak_gib": 0.5,
            "growth_bytes": 100,
        }
    )


def fewer_frames(source: Path, target: Path, upscaler: Any, settings: Any) -> None:
    video.draw(target, 64, 96, 4)


@pytest.mark.parametrize("broken", ["a frame is lost", "another picture"])
def test_what_is_wrong_has_no_speed(broken: str, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if broken == "a frame is lost":
        monkeypatch.setattr(video, "WAYS", {"png": (lambda: None, fewer_frames)})
    else:
        honest = video.from_rgb
        monkeypatch.setattr(video, "from_rgb", lambda rgb, colour: [plane ^ 2 for plane in honest(rgb, colour)])
    found = video.measure(tiny, 16, 24, 5, 1, "cpu", "fp32", codecs=(), with_peers=broken == "a frame is lost")
    assert (found["quality"]["gate"], found["derived"]) == ("fail", {})
    table = video_table(found)
    assert {row[1:] for row in table.rows} == {("-",) * 4}
    assert any("gate failed" in note for note in table.notes)
    (one,) = cleaned([found])
    verify(one, [one])


def test_the_command(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(roundtrip, "find_spec", lambda name: None)
    out = tmp_path / "records.jsonl"
    bench("video", model=tiny, size="24x16,8x8", frames=3, runs=1, precision="fp32", peers=True, out=out)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(one["suite"], one["shape"]["w"], one["frames"]) for one in lines] == [("video", 24, 3), ("video", 8, 3)]
    printed = capsys.readouterr().out
    assert "tiny, 24x16 LR, 3 frames" in printed
    assert "without opencv: OpenCV is not installed: pip install opencv-python-headless" in printed


def test_a_part_of_make_gpu(tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(parts, "MODEL", tiny)
    monkeypatch.setattr(parts, "DEVICE", "cpu")
    monkeypatch.setitem(parts.FUSED, "precision", "fp32")
    found: list[Record] = []
    parts.video((24, 16), 4, encoders=False)(found.append)
    assert not any("libx264" in name for name in found[0]["raw"]["seconds"])
    assert len(found[0]["raw"]["seconds"]["null"]) == 3
    assert "null of model" in capsys.readouterr().out
    monkeypatch.setattr(video, "_CODED_DB", 101.0)
    with pytest.raises(SRGANFastError, match="at 24x16"):
        parts.video((24, 16), 4, encoders=True)(found.append)
    assert found[1]["derived"] == {}


class Sleeping:
    """Stands for an upscaler: a frame takes so long, and no core."""

    scale, device = 4, "cpu"

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def plan(self, height: int, width: int, **asked: Any) -> Any:
        return SimpleNamespace(frames=1)

    def __call__(self, frame: Tensor, layout: str) -> Tensor:
        time.sleep(self._seconds)
        return frame.repeat_interleave(4, 0).repeat_interleave(4, 1)


def test_a_sink_in_the_place_of_the_encoder(tmp_path: Path) -> None:
    """The network alone decides: its share of the time of the whole chain; and nothing is written."""
    clip = tmp_path / "clip.mkv"
    video.draw(clip, 16, 24, 60)
    with Source(clip) as source:
        output = output_of(source.info, 4, choose("libx264", 96, 64, 8))
    task = Task(clip, None, Folder(tmp_path), output, choose("libx264", 96, 64, 8), Options())
    seen: list[tuple[int, ...]] = []

    def sink(segments: Any, items: Iterator[Any]) -> Iterator[int | Segment]:
        for segment in segments:
            for item in items:
                if isinstance(item, End):
                    break
                seen.append(item.planes[0].shape)
                yield item.pts
            yield segment

    share = 0.0
    for _ in range(5):  # other work on the machine may be in the way
        through: list[Pipeline] = []
        seen.clear()
        start = time.perf_counter()
        upscaler: Any = Sleeping(0.03)
        assert render(task, upscaler, [Segment(0, None, None)], sink=sink, ended=through.append)
        share = through[0].busy_s()["upscale"] / (time.perf_counter() - start)
        assert seen == [(64, 96)] * 60
        assert through[0].busy_s()["upscale"] >= 60 * 0.03
        if share >= 0.95:
            break
    assert share >= 0.95
    assert through[0].cpu_s()["upscale"] < through[0].busy_s()["upscale"] / 2
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mkv"]


def test_stages_tell_what_they_had_of_a_core() -> None:
    def burn(items: Iterator[int]) -> Iterator[int]:
        for item in items:
            end = time.thread_time() + 0.01
            while time.thread_time() < end:
                pass
            yield item

    def rest(items: Iterator[int]) -> Iterator[int]:
        for item in items:
            time.sleep(0.01)
            yield item

    with Pipeline(("source", range(10)), [("burns", burn), ("rests", rest)]) as chain:
        assert len(list(chain)) == 10
    cpu_s = chain.cpu_s()
    assert set(cpu_s) == {"source", "burns", "rests"}
    assert 0.1 <= cpu_s["burns"] <= 0.15
    assert cpu_s["rests"] < 0.05


@pytest.mark.gpu
def test_on_a_gpu(tiny: str) -> None:
    (one,) = cleaned([video.measure(tiny, 64, 96, 40, 1, "cuda", "fp16")])
    verify(one, [one])
    assert one["quality"]["gate"] == "pass"
    assert 0 < one["derived"]["gpu_busy"] <= 1
    assert one["shape"]["n"] > 1
