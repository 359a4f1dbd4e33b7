"""The trainer on a GPU: looks that wait for nothing, times of the GPU's clock, checkpoints between devices."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from training import TINY, photos, read_log, small

from srgan_fast import weights
from srgan_fast.train.meter import Meter
from srgan_fast.train.trainer import Trainer

__all__ = ["photos", "small"]

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("small")]

RUN = dataclasses.replace(TINY, steps=24, batch=4)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_measuring_waits_for_nothing() -> None:
    device = torch.device("cuda")
    meter = Meter(device, 8)
    terms = {"content": torch.ones((), device=device), "generator_norm": torch.zeros((), device=device)}
    work = torch.rand(2048, 2048, device=device)
    try:
        torch.cuda.set_sync_debug_mode("error")
        meter.start()
        for _ in range(8):
            meter.loaded()
            work @ work
            meter.add(terms)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    records = meter.read()
    assert [record["content"] for record in records] == [1.0] * 8
    assert all(record["step_s"] > record["loader_s"] >= 0 for record in records)


@pytest.mark.parametrize("step", ["eager", "graph"])
@pytest.mark.parametrize("resident", [True, False])
def test_every_step_has_its_line(photos: Path, tmp_path: Path, step: str, resident: bool) -> None:
    trainer = Trainer(RUN, photos, tmp_path, device="cuda", step=step, resident=resident, log_every=10)
    trainer.run()
    trainer.close()
    lines, _ = read_log(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, 25))
    assert all(line["step_s"] > 0 and line["loader_s"] > 0 for line in lines)


@pytest.mark.parametrize("step", ["eager", "graph"])
def test_a_run_that_is_cut_off_is_the_run_that_was_not(photos: Path, tmp_path: Path, step: str) -> None:
    cudnn = torch.backends.cudnn
    kept, cudnn.deterministic = cudnn.deterministic, True
    try:
        Trainer(RUN, photos, tmp_path / "whole", device="cuda", step=step, kernels="off").run()
        resume, path = False, None
        while path is None:
            trainer = Trainer(
                RUN, photos, tmp_path / "parts", device="cuda", step=step, kernels="off", resume=resume, time_limit_s=2
            )
            path, resume = trainer.run(), True
    finally:
        cudnn.deterministic = kept
    one, two = (weights.load(tmp_path / name / "model.safetensors").info.digest for name in ("whole", "parts"))
    assert one == two


def test_a_checkpoint_opens_on_the_other_device(photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for steps, device in ((4, "cuda"), (8, "cpu"), (12, "cuda")):
        trainer = Trainer(dataclasses.replace(RUN, steps=steps), photos, tmp_path, device=device, resume=steps > 4)
        assert trainer.position == steps - 4
        trainer.run()
    said = [record.message for record in caplog.records if "not in bits" in record.message]
    assert len(said) == 2
    assert all("device (" in message for message in said)
