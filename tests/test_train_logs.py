"""What a run writes beside its weights: train.jsonl, TensorBoard, the report, the progress."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import sys
import tracemalloc
import types
from array import array
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from training import TINY, photos, read_log, small

from srgan_fast.cli.progress import Progress
from srgan_fast.errors import OutputError, UsageError
from srgan_fast.train import board
from srgan_fast.train import report as report_module
from srgan_fast.train.log import RunLog, read_events, read_steps
from srgan_fast.train.report import Course, Curve
from srgan_fast.train.trainer import Trainer

__all__ = ["photos", "small"]
pytestmark = pytest.mark.usefixtures("small")

DRAW = report_module.draw


def test_a_full_disk(photos: Path, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    out = tmp_path / "run"
    out.mkdir()
    (out / "train.jsonl").symlink_to("/dev/full")
    with pytest.raises(OutputError, match="make room"):
        Trainer(TINY, photos, out).run()


def test_tensorboard_gets_curves_and_samples(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            calls.append(("open", folder, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            calls.append(("scalar", name, step))

        def add_image(self, name: str, image: torch.Tensor, step: int) -> None:
            calls.append(("image", tuple(image.shape), step))

        def close(self) -> None:
            calls.append(("close",))

    monkeypatch.setattr(board.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    config = dataclasses.replace(TINY, steps=4)
    for number, validation in enumerate((None, photos)):
        calls.clear()
        Trainer(config, photos, tmp_path / str(number), validation=validation, validate_every=2).run()
        assert calls[0] == ("open", str(tmp_path / str(number) / "tensorboard"), 0)
        assert [step for kind, *rest in calls if kind == "scalar" and rest[0] == "content" for step in rest[1:]] == [
            1,
            2,
            3,
            4,
        ]
        names = {"content", "generator_norm", "learning_rate", "images_per_s", "step_ms", "loader_ms"}
        assert {name for kind, name, step in calls[1:-1] if kind == "scalar" and step == 1} == names
        psnr = [step for kind, name, step in calls[1:-1] if name == "val_psnr_db"]
        assert psnr == ([2, 4] if validation else [])
        rows = 3 if validation else 2
        assert [call for call in calls if call[0] == "image"] == [("image", (3, rows * 32, 96), s) for s in (2, 4)]
        assert calls[-1] == ("close",)


def test_a_point_is_the_mean_since_the_last_look(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points: list[tuple[int, dict[str, float]]] = []
    monkeypatch.setattr(board.Board, "open", True)
    monkeypatch.setattr(board.Board, "scalars", lambda self, step, values: points.append((step, values)))
    Trainer(dataclasses.replace(TINY, steps=5), photos, tmp_path, log_every=3).run()
    lines, _ = read_log(tmp_path)
    assert [step for step, _ in points] == [3, 5]
    for name, factor in (("content", 1), ("loader_s", 1000)):
        wanted = sum(record[name] for record in lines[:3]) / 3 * factor
        assert points[0][1][name.replace("_s", "_ms")] == pytest.approx(wanted)


def test_tensorboard_drops_what_was_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int]] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            self.start = purge_step
            calls.append(("open", purge_step))

        def close(self) -> None:
            calls.append(("close", self.start))

    monkeypatch.setattr(board.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    board.Board(tmp_path, 7).go_back(4)
    assert calls == [("open", 7), ("close", 7), ("open", 4)]


def test_a_sample_grid_shows_lr_sr_hr() -> None:
    lr = torch.full((2, 3, 2, 2), 0.25)
    grid = board.sample_grid(lr, torch.zeros(2, 3, 8, 8), torch.full((2, 3, 8, 8), 3.0))
    assert grid.shape == (3, 16, 24)
    assert [float(grid[0, 0, x]) for x in (0, 8, 16)] == [0.25, 0.5, 1.0]


@pytest.mark.parametrize("at_once", [False, True])
def test_tensorboard_that_cannot_write_does_not_end_a_run(
    at_once: bool, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Full:
        def __init__(self, folder: str, purge_step: int) -> None:
            if at_once:
                raise OSError(17, "File exists")

        def add_scalar(self, *_: Any) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(board.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Full))
    assert Trainer(dataclasses.replace(TINY, steps=2), photos, tmp_path / "run").run().is_file()
    assert caplog.text.count("TensorBoard stops here") == 1


def line(**values: Any) -> str:
    return json.dumps(values) + "\n"


def test_a_log_tells_which_steps_count(tmp_path: Path) -> None:
    """Lines of steps that were undone stay, and an event says from where the run went on."""
    text = line(event="start", step=0) + "".join(line(step=step, content=1.0) for step in range(1, 6))
    text += line(event="rollback", step=2, salt=1) + line(step=3, content=2.0) + line(event="statistics", step=3)
    text += line(event="resume", step=3) + line(step=4, content=2.0) + line(event="rollback", step=1)
    (tmp_path / "train.jsonl").write_text(text + line(step=2, content=3.0) + '{"step": 3, "cont')
    steps, events = read_log(tmp_path)
    assert [(record["step"], record["content"]) for record in steps] == [(1, 1.0), (2, 3.0)]
    assert [event["event"] for event in events] == ["start", "rollback", "statistics", "resume", "rollback"]


def test_the_log_of_a_long_run_is_never_held(tmp_path: Path) -> None:
    """Of its 20,000 steps the curves are kept, as plain numbers."""
    told = {"content": 0.25, "generator_norm": 1.0, "learning_rate": 1e-4, "loader_s": 0.25, "step_s": 0.75}
    with (tmp_path / "train.jsonl").open("w") as file:
        file.writelines(line(step=step, **told) for step in range(1, 20_001))
    tracemalloc.start()
    try:
        course = Course(*(read(tmp_path) for read in (read_steps, read_events)))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 20_000 * 60
    assert report_module.rates(course, 16) == {"images_per_s": 16.0, "loader_share": 0.25}
    assert (course.curves["content"].steps[-1], list(course.curves)) == (20_000, ["content"])


@pytest.mark.parametrize(("position", "kept"), [(5, 8), (4, 7), (3, 6), (2, 5), (6, 8)])
def test_a_resumed_run_drops_what_it_repeats(tmp_path: Path, position: int, kept: int) -> None:
    lines = [line(event="start", step=0), *(line(step=step) for step in (1, 2, 3)), line(event="rollback", step=2)]
    lines += [line(step=3), line(step=4), line(step=5)]
    (tmp_path / "train.jsonl").write_text("".join(lines) + '{"step": 6, "con')
    with RunLog(tmp_path, position) as log:
        log.write({"event": "resume", "step": position})
    assert (tmp_path / "train.jsonl").read_text() == "".join(lines[:kept]) + line(event="resume", step=position)


def test_a_log_that_cannot_be_cut_is_let_go_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(os, "truncate", refuse)
        with pytest.raises(OutputError, match="check its permissions") as kept:
            RunLog(tmp_path, 0)
    with RunLog(tmp_path, 0):  # though the error still has all that there was
        assert kept.value


def test_every_line_is_json(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0) as log:
        log.write({"step": 1, "val_psnr_db": float("inf"), "content": float("nan")})
    text = (tmp_path / "train.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"step": 1, "val_psnr_db": None, "content": None}


def test_two_runs_in_one_folder(photos: Path, tmp_path: Path) -> None:
    with RunLog(tmp_path, 0), pytest.raises(UsageError, match="another process trains in"):
        Trainer(dataclasses.replace(TINY, steps=1), photos, tmp_path).run()
    assert not list(tmp_path.glob("*.ckpt"))


def test_the_report_has_the_curve_and_the_numbers(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_module, "draw", DRAW)
    trainer = Trainer(dataclasses.replace(TINY, steps=4), photos, tmp_path, validation=photos, validate_every=2)
    trainer.run()
    report = json.loads((tmp_path / "report.json").read_text())
    assert report == json.loads(json.dumps(trainer.summary))
    assert (report["steps"], report["images"], report["rollbacks"]) == (4, 3, 0)
    assert report["duration_s"] > 0
    assert 0 < report["loader_share"] < 1
    steps, _ = read_log(tmp_path)
    seconds = sum(record["loader_s"] + record["step_s"] for record in steps)
    assert report["images_per_s"] == pytest.approx(4 * 2 / seconds)
    assert report["scores"]["val_psnr_db"] > 0
    assert {"torch", "device", "precision", "ranks", "step", "kernels"} <= report["environment"].keys()
    page = (tmp_path / "report.md").read_text()
    assert "report.png" in page
    assert f"| images_per_s | {report['images_per_s']:.6g} |" in page
    with Image.open(tmp_path / "report.png") as picture:
        colours = picture.convert("RGB").getcolors(2**24) or []
        assert any(colour == (59, 110, 165) for _, colour in colours)  # a line is there


@pytest.mark.parametrize("values", [[], [0.0], [0.5, 0.25, 0.0], [None, 0.5], [0.5] * 3])
def test_any_run_can_be_drawn(tmp_path: Path, values: list[float | None]) -> None:
    steps = [{"step": step, "content": value} for step, value in enumerate(values, 1)]
    events = [{"event": "start", "step": 0}, {"event": "rollback", "step": 2}]
    DRAW(Course([step | {"loader_s": 0.0, "step_s": 0.0} for step in steps], events), tmp_path / "report.png")
    with Image.open(tmp_path / "report.png") as picture:
        assert picture.width == 880


def test_a_report_without_matplotlib(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(report_module, "find_spec", lambda name: None)
    Trainer(dataclasses.replace(TINY, steps=1), photos, tmp_path).run()
    assert "pip install 'srgan-fast[train]'" in caplog.text
    assert not (tmp_path / "report.png").exists()
    assert "report.png" not in (tmp_path / "report.md").read_text()


def test_a_long_curve_is_thinned_by_means() -> None:
    steps = array("q", range(1, 1601))
    where, values = report_module.thinned(Curve(steps, array("d", (step % 2 for step in steps))))
    assert len(where) == 800
    assert set(values) == {0.5}
    assert where[:2] == [1.5, 3.5]


def test_progress_has_the_time_that_is_left() -> None:
    now = [0.0]
    progress = Progress(110, 10, clock=lambda: now[0])
    now[0] = 50.0
    record = {"content": 0.25, "generator_norm": 1.0, "images_per_s": 33.333, "val_psnr_db": 28.5}
    progress(20, record)
    assert progress.line(20, record) == "0:07:30 left, content 0.25000, 33.3 images/s, validation 28.500 dB"
    del record["val_psnr_db"]  # the last one stays in sight
    assert progress.line(110, record) == "0:00:00 left, content 0.25000, 33.3 images/s, validation 28.500 dB"


def test_progress_outside_a_terminal_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    record = {"content": 0.25, "images_per_s": 33.333}
    with Progress(100, 0, clock=lambda: now[0]) as progress:
        for step in range(1, 100):
            now[0] += 2.0
            progress(step, record)
    lines = capsys.readouterr().err.splitlines()
    assert [text.split(":")[0] for text in lines] == ["step 30 of 100", "step 60 of 100", "step 90 of 100"]
