"""Runs of several processes as torchrun starts them: killed, stopped, and gone on with in another number."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ranks import environment, free_port, together
from safetensors.torch import load_file

from srgan_fast.errors import BackendUnavailable, CheckpointError, UsageError
from srgan_fast.model import GeneratorConfig
from srgan_fast.train.checkpoint import newest
from srgan_fast.train.config import PRESETS
from srgan_fast.train.distributed import World
from srgan_fast.train.trainer import Trainer

Run = Callable[..., tuple[int, str, str]]

STEPS = 90
SOAK = os.environ.get("SRGAN_FAST_SOAK") == "1"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index in range(3):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 9, 3), dtype=np.uint8))
        coarse.resize((60 + index, 48)).save(folder / f"{index}.png")
    return folder


class Job:
    """One `srgan-fast train` on the CPU, by torchrun for more than one rank; small, and one thread a rank."""

    def __init__(self, photos: Path, out: Path, *options: str, ranks: int = 2, restarts: int = 0) -> None:
        self.out = out
        start = [sys.executable, "-m"]
        if ranks > 1:
            start += ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
            start += [f"--max-restarts={restarts}", "--monitor-interval=0.05", "-m"]
        train = ["srgan_fast", "train", str(photos), str(out), "--batch", "4", "--crop", "32", "--blocks", "1"]
        train += ["--width", "4", "--precision", "fp32", "--device", "cpu", "--save-every", "7", "--steps", str(STEPS)]
        train += options
        variables = {key: value for key, value in os.environ.items() if key not in ("WORLD_SIZE", "RANK")}
        self.output = out.with_suffix(".txt")
        with self.output.open("w") as file:
            self.process = subprocess.Popen(
                start + train, stdout=file, stderr=file, env=variables | {"OMP_NUM_THREADS": "1"}
            )

    def records(self) -> dict[int, dict[str, Any]]:
        """The last word of the log on each step."""
        found = {}
        path = self.out / "train.jsonl"
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                record = json.loads(line)
            except ValueError:
                continue  # still being written
            if "content" in record:
                found[record["step"]] = record
        return found

    def reach(self, step: int) -> None:
        end = time.monotonic() + 120
        while max(self.records(), default=0) < step:
            assert self.process.poll() is None, f"ended before step {step}:\n{self.said()}"
            assert time.monotonic() < end, f"never came to step {step}:\n{self.said()}"
            time.sleep(0.01)

    def rank(self, number: int) -> int:
        """The process of a rank."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for child in children:
            if f"RANK={number}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
                return int(child)
        raise AssertionError(f"no rank {number} among {children}")

    def end(self) -> int:
        return self.process.wait(180)

    def said(self) -> str:
        return self.output.read_text()

    def losses(self) -> list[float]:
        return [record["content"] for _, record in sorted(self.records().items())]

    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.out / "model.safetensors")


@pytest.fixture(scope="module")
def undisturbed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    job = Job(photos, tmp_path_factory.mktemp("undisturbed") / "run")
    assert job.end() == 0, job.said()
    assert sorted(job.records()) == list(range(1, STEPS + 1))
    return job


@pytest.mark.slow
def test_nothing_of_a_world_lives_on_when_a_rank_has_left() -> None:
    """A thread of gloo that does may let go of a tensor while the interpreter ends, which is then ended by a signal."""
    program = (
        "import os, torch\n"
        "from srgan_fast.train.distributed import join, leave\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "world, _ = join('cpu')\n"
        "torch.optim.Adam([torch.nn.Parameter(torch.ones(1))])\n"  # loads modules that keep the group there is
        "world.barrier()\n"
        "leave(world)\n"
        "print(len(os.listdir('/proc/self/task')) - before)\n"
    )
    port = free_port()
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env=os.environ | environment(rank, 2, port) | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    assert [rank.communicate(timeout=120)[0] for rank in ranks] == [b"0\n"] * 2


def same(job: Job, other: Job) -> None:
    assert job.losses() == other.losses()
    for name, value in other.weights().items():
        assert torch.equal(job.weights()[name], value), name


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8 if SOAK else 1))
def test_a_killed_rank_costs_nothing(photos: Path, tmp_path: Path, undisturbed: Job, seed: int) -> None:
    """Each rank is killed once: torchrun starts all again, and the run ends as if nothing had happened."""
    draw = random.Random(seed)
    job = Job(photos, tmp_path / "run", restarts=2)
    for number in draw.sample(range(2), 2):
        job.reach(max(job.records(), default=0) + draw.randint(1, STEPS // 3))
        os.kill(job.rank(number), signal.SIGKILL)
    assert job.end() == 0, job.said()
    same(job, undisturbed)


@pytest.mark.slow
def test_a_run_that_is_stopped_is_saved_whole(photos: Path, tmp_path: Path, undisturbed: Job) -> None:
    """torchrun passes a signal on to its ranks, and ends with 1 whatever they end with."""
    draw = random.Random(0)
    options: tuple[str, ...] = ()
    for number in (signal.SIGTERM, signal.SIGINT):
        job = Job(photos, tmp_path / "run", *options)
        job.reach(max(job.records(), default=0) + draw.randint(1, STEPS // 3))
        job.process.send_signal(number)
        assert job.end() != 0
        (stopped,) = set(re.findall(r"stopped after step (\d+), saved", job.said()))  # all ranks after the same one
        found = newest(job.out)
        assert found is not None
        assert found.step == int(stopped) < STEPS
        options = ("--resume",)
    job = Job(photos, tmp_path / "run", *options)
    assert job.end() == 0, job.said()
    same(job, undisturbed)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_ranks(photos: Path, tmp_path: Path) -> None:
    """Without batch normalisation, equal in value: float32 sums in another order, by 1e-6 of a loss and less."""
    options = ("--preset", "cpu-srresnet-mse")
    alone = Job(photos, tmp_path / "alone", *options, ranks=1)
    assert alone.end() == 0, alone.said()
    job = Job(photos, tmp_path / "run", *options)
    job.reach(STEPS // 3)
    job.process.terminate()
    job.end()
    job = Job(photos, tmp_path / "run", *options, "--resume", ranks=1)
    assert job.end() == 0, job.said()
    assert re.search(r"equal in value, not in bits: resumed with a difference in ranks \(2 before, 1 now\)", job.said())
    assert job.losses() == pytest.approx(alone.losses(), rel=1e-5)
    for name, value in alone.weights().items():
        torch.testing.assert_close(job.weights()[name], value, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("variables", "options", "code", "message"),
    [
        (
            {"WORLD_SIZE": "2"},
            (),
            UsageError.exit_code,
            "WORLD_SIZE without RANK; start by torchrun or unset WORLD_SIZE",
        ),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"},
            (),
            UsageError.exit_code,
            "expected MASTER_ADDR beside WORLD_SIZE=2, got none; start by torchrun",
        ),
        (
            {},
            ("--sync-bn",),
            BackendUnavailable.exit_code,
            "needs CUDA, and this rank runs on cpu; leave out --sync-bn",
        ),
    ],
)
def test_what_cannot_be_is_one_line(
    variables: dict[str, str],
    options: tuple[str, ...],
    code: int,
    message: str,
    photos: Path,
    tmp_path: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    small = ("--steps", 1, "--batch", 2, "--crop", 32, "--blocks", 1, "--width", 4, "--device", "cpu")
    got, out, err = run("train", photos, tmp_path / "run", *small, *options)
    assert (got, out) == (code, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


CONFIG = dataclasses.replace(
    PRESETS["paper-srresnet-mse"], generator=GeneratorConfig(blocks=1, width=4), crop=32, batch=2, steps=4
)


def begin(world: World, photos: Path, out: Path) -> None:
    Trainer(dataclasses.replace(CONFIG, batch=3), photos, out, device="cpu", world=world)


def begin_again(world: World, photos: Path, out: Path) -> int:
    os.environ["TORCHELASTIC_RESTART_COUNT"] = str(world.rank)
    return Trainer(CONFIG, photos, out, device="cpu", world=world).position


def test_machines_that_count_their_restarts_apart_go_on_together(photos: Path, tmp_path: Path) -> None:
    """Rank 0 is on a machine that is new, and finds the checkpoint of those that are not."""
    Trainer(dataclasses.replace(CONFIG, steps=2), photos, tmp_path / "run", device="cpu").run()
    assert together(begin_again, photos, tmp_path / "run") == [2, 2]


def test_a_job_that_may_restart_can_be_told_to_resume_from_the_first(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckpointError, match="start without --resume"):
        Trainer(CONFIG, photos, tmp_path / "run", device="cpu", resume=True)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    assert Trainer(CONFIG, photos, tmp_path / "run", device="cpu", resume=True).position == 0


def test_a_batch_that_the_ranks_cannot_divide_is_one_line(photos: Path, tmp_path: Path) -> None:
    for error in together(begin, photos, tmp_path / "run"):
        assert isinstance(error, UsageError)
        assert "ranks that divide a batch of 3" in str(error)
        assert "change --batch" in str(error)
        assert "\n" not in str(error)
