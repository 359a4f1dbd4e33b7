"""`srgan-fast train` as a user meets it: what it prints, what it refuses, and runs that are killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from training import photos, read_log, small

from srgan_fast import weights
from srgan_fast.train import checkpoint
from srgan_fast.train.store import Folder, write_pack

__all__ = ["photos", "small"]

Run = Callable[..., tuple[int, str, str]]

SHAPE = ("--blocks", "1", "--width", "4", "--crop", "32", "--batch", "2", "--precision", "fp32", "--device", "cpu")
SOAK = os.environ.get("SRGAN_FAST_SOAK") == "1"


@pytest.mark.usefixtures("small")
def test_a_run_says_what_it_is_and_what_came_out(run: Run, photos: Path, tmp_path: Path) -> None:
    code, out, err = run("train", photos, tmp_path / "run", *SHAPE, "--steps", 4, "--validation", photos)
    assert code == 0, err
    for said in (
        "3 images, 2 skipped; step 0 of 4",
        "step eager on cpu; images held there",
        "batch statistics estimated anew on 32 batches: validation",
        "images/s, the loader took",
        "trained 4 steps ->",
        "report.md",
    ):
        assert said in out


@pytest.mark.usefixtures("small")
def test_slices_of_a_run(run: Run, photos: Path, tmp_path: Path) -> None:
    """The exit code of a slice is 0, and its last line says how to go on."""
    command = ("train", photos, tmp_path, *SHAPE, "--steps", 3, "--time-limit", "1e-9")
    code, out, _ = run(*command)
    assert code == 0
    assert "the time limit came at step 1 of 3" in out
    assert "the same command with --resume goes on" in out
    code, out, _ = run(*command, "--resume")
    assert "step 2 of 3" in out
    assert "the same command goes on" in out
    assert not (tmp_path / "model.safetensors").exists()
    code, out, _ = run(*command, "--resume")
    assert code == 0
    assert (tmp_path / "model.safetensors").exists()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--device", "tpu"), 2, "expected a device out of auto, cpu, cuda"),
        (("--device", "cuda"), 3, "torch sees none"),
        (("--step", "fast"), 2, "--step out of auto, eager, graph"),
        (("--step", "graph"), 3, "--step auto"),
        (("--kernels", "yes"), 2, "--kernels out of auto, on, off"),
        (("--kernels", "on"), 3, "--kernels off"),
        (("--data-on", "gpu"), 2, "--data-on out of auto, device, host"),
        (("--log-every", "0"), 2, "at least 1 step"),
        (("--save-every", "0"), 2, "at least 1 step"),
        (("--time-limit", "0"), 2, "above 0 seconds"),
        (("--time-limit", "nan"), 2, "above 0 seconds"),
        (("--time-limit", "soon"), 2, "--time-limit"),
        (("--batch", "0"), 2, "at least 1"),
        (("--crop", "30"), 2, "multiple of scale"),
        (("--sync-bn",), 3, "--sync-bn"),
        (("--resume",), 5, "without --resume"),
        (("--init", "nothing.pth"), 2, "nothing.pth"),
        (("--content", "vgg54"), 2, "--vgg-weights"),
        (("--content", "squeezenet"), 2, "got no file; give one as --squeezenet-weights"),
        (("--width", "0"), 2, "got 1, 0 and 9; change --blocks or --width"),
        (("--validation", "nowhere"), 2, "nowhere"),
        (("--vgg-weights", "vgg19.pth"), 2, "expected no --vgg-weights, for the content loss is mse"),
        (("--squeezenet-weights", "s.pt", "--content", "vgg22"), 2, "for the content loss is vgg22"),
        (("--preset", "paper-srgan-mse"), 2, "--init"),
    ],
)
def test_what_is_refused_is_one_line_and_leaves_nothing(
    run: Run,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    base = [word for pair in zip(SHAPE[::2], SHAPE[1::2], strict=True) if pair[0] not in options for word in pair]
    got, _, err = run("train", photos, tmp_path / "deep" / "run", *base, "--steps", 1, *options)
    assert got == code, err
    assert said in err
    assert not (tmp_path / "deep").exists()


@pytest.mark.usefixtures("small")
def test_data_that_is_refused_leaves_no_folder(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pack").write_text("no pack")
    (tmp_path / "kept").mkdir()
    for data, out in (("empty", "run"), ("nowhere", "run"), ("text.pack", "run"), ("empty", "kept")):
        code, _, err = run("train", tmp_path / data, tmp_path / out, *SHAPE)
        assert (code, err.count("\n")) == (2, 1), err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "kept", "text.pack"]


@pytest.mark.usefixtures("small")
def test_a_gpu_that_is_too_small(run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("srgan_fast.train.step.EagerStep._work", full)
    code, _, err = run("train", photos, tmp_path / "run", *SHAPE, "--steps", 2)
    assert (code, "lower --batch or --crop" in err) == (7, True)


@pytest.mark.usefixtures("small")
def test_a_pack_trains_like_its_folder(run: Run, photos: Path, tmp_path: Path) -> None:
    write_pack(tmp_path / "photos.pack", Folder(photos, 32))
    for data, out in ((photos, "one"), (tmp_path / "photos.pack", "two")):
        code, _, err = run("train", data, tmp_path / out, *SHAPE, "--steps", 3)
        assert code == 0, err
    one, two = (weights.load(tmp_path / out / "model.safetensors").info for out in ("one", "two"))
    assert one.digest == two.digest


@pytest.mark.usefixtures("small")
def test_a_pack_of_pairs_trains_by_the_preset_for_pairs(run: Run, tmp_path: Path) -> None:
    high = torch.arange(3 * 40 * 48).view(3, 40, 48).to(torch.uint8)
    write_pack(tmp_path / "pairs.pack", [(high, high[:, ::2, ::2])], scale=2)
    code, out, err = run(
        "train", tmp_path / "pairs.pack", tmp_path / "run", "--preset", "kaggle-blur-x2", *SHAPE, "--steps", 1
    )
    assert code == 0, err
    assert "LR is read" in out
    assert "gaussian" not in out  # a pack of pairs has no other way


@pytest.mark.usefixtures("small")
def test_a_folder_of_pairs_says_what_of_it_is_read(run: Run, tmp_path: Path) -> None:
    for part, side in (("high", 40), ("low", 20)):
        (tmp_path / "pairs" / "train" / part).mkdir(parents=True)
        Image.new("RGB", (side, side), "teal").save(tmp_path / "pairs" / "train" / part / "0.png")
    for out, options, said in (
        ("read", (), "LR is read: "),
        ("made", ("--degradation", "gaussian"), "high alone, LR made from it"),
    ):
        command = ("train", tmp_path / "pairs", tmp_path / out, "--preset", "kaggle-blur-x2", *SHAPE, "--steps", 1)
        code, told, err = run(*command, *options)
        assert code == 0, err
        assert said in told
        assert "1 images, 0 skipped" in told


class Job:
    """`srgan-fast train` in a process of its own."""

    def __init__(self, data: Path, out: Path, *options: object) -> None:
        command = [sys.executable, "-m", "srgan_fast", "train", data, out, *SHAPE, *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [*map(str, command)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.out = out

    def wait_for(self, step: int) -> None:
        """Return when a checkpoint of that step or a later one is there."""
        for _ in range(3000):
            names = [path.name for path in checkpoint.checkpoints(self.out)]
            if (names and names[-1] >= f"step_{step:08d}.ckpt") or self.process.poll() is not None:
                return
            time.sleep(0.01)
        raise AssertionError("the run does not get on")

    def end(self, number: int | None = None) -> tuple[int, str]:
        """Send a signal if one is given; the exit code and what was printed."""
        if number is not None:
            self.process.send_signal(number)
        try:
            out, _ = self.process.communicate(timeout=300)
        finally:
            self.process.kill()  # nothing where it has ended
        return self.process.returncode, out


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_ends_with_130(photos: Path, tmp_path: Path, number: int) -> None:
    job = Job(photos, tmp_path, "--steps", 100_000, "--save-every", 100_000)
    job.wait_for(0)
    time.sleep(0.5)
    code, out = job.end(number)
    assert code == 130, out
    assert "go on with --resume" in out
    assert "Traceback" not in out
    steps, _ = read_log(tmp_path)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.step == steps[-1]["step"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(("save_every", "stage"), [(1, "srresnet"), (4, "srgan")])
def test_kill_9_at_any_moment_changes_nothing(photos: Path, tmp_path: Path, save_every: int, stage: str) -> None:
    """With a checkpoint a step most kills meet one being written. 20 kills with `make soak`, 3 otherwise."""
    kills, steps = (20, 600) if SOAK else (3, 240)
    options = ["--steps", steps, "--save-every", save_every, "--learning-rate", "1e-3"]
    if stage == "srgan":
        start = Job(photos, tmp_path / "start", "--steps", 1)
        assert start.end()[0] == 0
        options += ["--preset", "paper-srgan-mse", "--init", tmp_path / "start" / "model.safetensors"]
        kills, steps = kills // 3, steps // 20  # its discriminator is the paper's
        options[1] = steps
    code, out = Job(photos, tmp_path / "whole", *options).end()
    assert code == 0, out
    generator = random.Random()
    seed = generator.randrange(2**32)
    generator.seed(seed)
    parts, killed, torn = tmp_path / "parts", 0, 0
    while True:
        started = bool(checkpoint.checkpoints(parts))
        job = Job(photos, parts, *options, *(["--resume"] if started else []))
        if killed == kills:
            break
        found = checkpoint.newest(parts)
        done = found.step if found is not None else 0
        # Anywhere on the way to where this kill belongs, the start and the first checkpoint included.
        job.wait_for(done + generator.randrange(1 + max(1, (steps - done) // (kills - killed + 1))))
        time.sleep(generator.random() * 0.02)
        code, out = job.end(signal.SIGKILL)
        assert code in (-signal.SIGKILL, 0), out
        killed += 1
        torn += len(list(parts.glob(".*.part")))
        assert "is damaged" not in out, f"seed {seed}"
    code, out = job.end()
    assert code == 0, f"seed {seed}: {out}"
    assert "is damaged" not in out, f"seed {seed}"
    assert list(parts.glob(".*.part")) == []
    one, two = (weights.load(tmp_path / name / "model.safetensors").info.digest for name in ("whole", "parts"))
    assert one == two, f"seed {seed}, {torn} kills while a file was being written"
    lines = [read_log(tmp_path / name)[0] for name in ("whole", "parts")]
    assert [line["content"] for line in lines[0]] == [line["content"] for line in lines[1]], f"seed {seed}"
    text = (parts / "train.jsonl").read_text().splitlines()
    numbers = [record["step"] for record in map(json.loads, text) if "event" not in record]
    assert numbers == list(range(1, steps + 1))
