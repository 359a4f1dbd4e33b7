"""The trainer: what a run learns and tells, what it refuses, and what it is judged by."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from training import TINY, photos, read_log, small, start_of

from srgan_fast import weights
from srgan_fast.errors import InputError, OutputError, UsageError
from srgan_fast.model import Discriminator, Generator, GeneratorConfig
from srgan_fast.train import losses
from srgan_fast.train import trainer as trainer_module
from srgan_fast.train.config import PRESETS
from srgan_fast.train.step import EagerStep, learning_rate
from srgan_fast.train.store import Folder, read_pairs, write_pack
from srgan_fast.train.trainer import Trainer

__all__ = ["photos", "small"]
pytestmark = pytest.mark.usefixtures("small")


def test_the_rate_follows_the_plan() -> None:
    config = dataclasses.replace(TINY, steps=100, warmup=10, decay="cosine", learning_rate=1.0, final_learning_rate=0.1)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[0] == 0.1
    assert max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    srgan = PRESETS["paper-srgan-vgg54"]
    assert learning_rate(srgan, 99_999) == 1e-4
    assert learning_rate(srgan, 100_000) == 1e-5


def test_a_run_learns_and_tells(photos: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, steps=30, learning_rate=1e-2)
    trainer = Trainer(config, photos, tmp_path / "run", validation=photos, validate_every=10)
    path = trainer.run()
    lines, events = read_log(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, 31))
    terms = [line["content"] for line in lines]
    assert sum(terms[-5:]) < 0.9 * sum(terms[:5])
    for line in lines:
        assert {"generator_norm", "loader_s", "step_s", "learning_rate", "images_per_s"} <= line.keys()
        assert line["images_per_s"] == pytest.approx(2 / (line["loader_s"] + line["step_s"]))
    assert [line["step"] for line in lines if "val_psnr_db" in line] == [10, 20, 30]
    assert [event["event"] for event in events] == ["start", "statistics"]
    assert path is not None
    recipe = weights.load(path).info.recipe
    assert recipe["steps_done"] == 30
    assert recipe["terms"]["content"] > 0


def test_a_step_is_closed_before_its_world_is_left(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graphs with messages inside are in the way of leaving."""
    told: list[str] = []
    monkeypatch.setattr(trainer_module, "leave", lambda world: told.append("world"))
    monkeypatch.setattr(EagerStep, "close", lambda self: told.append("step"))
    Trainer(TINY, photos, tmp_path / "run").close()
    assert told == ["step", "world"]


def test_folders_that_do_not_do(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="32x32"):
        Trainer(TINY, tmp_path / "empty", tmp_path / "out")
    with pytest.raises(UsageError, match="existing folder"):
        Trainer(TINY, tmp_path / "nowhere", tmp_path / "out")
    Trainer(dataclasses.replace(TINY, steps=1), photos, tmp_path / "out").run()
    with pytest.raises(UsageError, match="--resume"):
        Trainer(TINY, photos, tmp_path / "out")
    with pytest.raises(UsageError, match="--init"):
        Trainer(dataclasses.replace(TINY, stage="srgan"), photos, tmp_path / "gan")


def test_a_program_names_files_by_strings(photos: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, steps=1)
    start = start_of(tmp_path, config)
    trainer = Trainer(config, str(photos), str(tmp_path / "out"), initial=str(start), validation=str(photos))
    assert trainer.run() == tmp_path / "out" / "model.safetensors"


def test_a_folder_that_cannot_be_written_is_refused_before_images_are_read(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # By its permissions alone the test would pass any folder to a superuser.
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    monkeypatch.setattr("srgan_fast.train.trainer.read_source", lambda *_: pytest.fail("images were read"))
    with pytest.raises(OutputError, match="cannot write in"):
        Trainer(TINY, photos, tmp_path)


def test_measuring_the_terms_changes_nothing(photos: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, stage="srgan")
    initial = start_of(tmp_path, config)
    trainer = Trainer(config, photos, tmp_path / "run", initial=initial)
    before = weights.load(initial).network.state_dict()
    assert all(torch.equal(value, before[key]) for key, value in trainer.step.generator.state_dict().items())
    lr, hr = trainer.batches(0)
    assert trainer.terms.keys() == {"content", "adversarial"}
    # Statistics of a real step, not the untrained averages that eval mode would take.
    sr = trainer.step.generator(lr)
    assert trainer.step.generator.training
    assert math.isclose(trainer.terms["content"], float(losses.mse(sr, hr).detach()), rel_tol=0.5)


@pytest.mark.parametrize("option", ["save_every", "validate_every"])
def test_intervals_are_at_least_one_step(photos: Path, tmp_path: Path, option: str) -> None:
    with pytest.raises(UsageError, match="at least 1 step"):
        Trainer(TINY, photos, tmp_path / "run", **{option: 0})


@pytest.mark.parametrize(
    "change",
    [
        {"seed": -1},
        {"seed": 2**60},
        {"clip": -1.0},
        {"clip": math.nan},
        {"adversarial_weight": math.nan},
        {"pixel_weight": 1.0},
        {"pixel_weight": -1.0, "content": "vgg54"},
        {"learning_rate": math.nan},
        {"learning_rate": math.inf},
        {"final_learning_rate": -1.0},
        {"warmup": -5},
        {"blur_sigma": 0.0, "degradation": "gaussian"},
        {"blur_sigma": 2.7, "degradation": "gaussian"},
        {"blur_sigma": math.nan, "degradation": "gaussian"},
        {"steps": 0},
        {"crop": 16, "content": "vgg54"},
        {"crop": 16, "stage": "srgan"},
    ],
)
def test_values_that_cannot_train(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"expected.* got"):
        dataclasses.replace(TINY, **change)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    from srgan_fast.resize import nearest_up

    generator = torch.Generator().manual_seed(1)
    for part, count in (("train", 3), ("val", 1)):
        for kind in ("high", "low"):
            (tmp_path / "pairs" / part / kind).mkdir(parents=True)
        for index in range(count):
            low = torch.randint(0, 256, (3, 20, 24), dtype=torch.uint8, generator=generator)
            for kind, image in (("low", low), ("high", nearest_up(low, 2))):
                path = tmp_path / "pairs" / part / kind / f"{index}.png"
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    train = tmp_path / "pairs" / "train"
    Image.new("RGB", (48, 40)).save(train / "high" / "alone.png")
    for kind in ("high", "low"):
        Image.new("RGB", (48, 40)).save(train / kind / "unlike.png")
    Image.new("RGB", (20, 20)).save(train / "high" / "small.png")
    Image.new("RGB", (10, 10)).save(train / "low" / "small.png")
    return tmp_path / "pairs"


def test_pairs_are_cut_and_turned_together(pairs: Path, tmp_path: Path) -> None:
    from srgan_fast.resize import nearest_up

    shape = GeneratorConfig(scale=2, blocks=1, width=4)
    config = dataclasses.replace(TINY, generator=shape, degradation="pairs", steps=2)
    trainer = Trainer(config, pairs, tmp_path / "run")
    assert {skipped.path.name for skipped in trainer.store.skipped} == {"alone.png", "unlike.png", "small.png"}
    assert len(trainer.validation) == 1
    for step in range(8):
        lr, hr = trainer.batches(step)
        assert lr.shape == (2, 3, 16, 16)
        assert torch.equal(nearest_up((lr * 255).round(), 2), ((hr + 1) * 127.5).round())
    assert "val_psnr_db" in weights.load(trainer.run()).info.recipe
    with pytest.raises(UsageError, match="no high"):
        Trainer(config, pairs / "train", tmp_path / "other")
    with pytest.raises(InputError, match="100x100"):
        Trainer(dataclasses.replace(config, crop=100), pairs, tmp_path / "other")


def test_pairs_that_cannot_be_read_or_share_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part, side in (("high", 32), ("low", 8)):
        (tmp_path / part).mkdir()
        Image.new("RGB", (side, side)).save(tmp_path / part / "a.png")
    Image.new("RGB", (32, 32), "red").save(tmp_path / "high" / "a.bmp")
    store = read_pairs(tmp_path, 4, 16)
    assert len(store) == 1
    assert store.image(0).max() == 0
    assert [(one.path.name, one.reason) for one in store.skipped] == [("a.bmp", "a.png beside it has the same name")]
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / "low")
    with pytest.raises(InputError, match=r"cannot read .*low; check its permissions"):
        read_pairs(tmp_path, 4, 16)


def test_of_pairs_whose_lr_is_not_read_the_hr_images_alone_are_trained_on(pairs: Path, tmp_path: Path) -> None:
    """Not their LR, and not what the run is judged by."""
    config = dataclasses.replace(TINY, generator=GeneratorConfig(scale=2, blocks=1, width=4), degradation="gaussian")
    store = Trainer(config, pairs, tmp_path / "run").store
    names = ["0.png", "1.png", "2.png", "alone.png", "unlike.png"]
    assert [tuple(store.image(i).shape) for i in range(len(store))] == [(3, 40, 48)] * len(names)
    for index, name in enumerate(names):
        image = torch.from_numpy(np.array(Image.open(pairs / "train" / "high" / name))).permute(2, 0, 1)
        assert torch.equal(store.image(index), image)


def test_validation_takes_the_degradation_of_the_run(photos: Path, tmp_path: Path) -> None:
    from srgan_fast.resize import gaussian_down

    config = dataclasses.replace(TINY, degradation="gaussian")
    trainer = Trainer(config, photos, tmp_path / "run", validation=photos)
    for lr, hr in trainer.validation:
        assert torch.equal(lr, gaussian_down(hr, 4, config.blur_sigma))


@pytest.mark.parametrize("pack", [False, True])
def test_validation_images_that_are_too_small(photos: Path, tmp_path: Path, pack: bool) -> None:
    """How small they may be is no choice of the user's: no option is advised."""
    source = tmp_path / "small"
    source.mkdir()
    Image.new("RGB", (18, 40)).save(source / "0.png")
    if pack:
        write_pack(tmp_path / "small.pack", Folder(source, 1))
        source = tmp_path / "small.pack"
    with pytest.raises(InputError, match=r"at least 19x19.*larger (images|ones)$"):
        Trainer(TINY, photos, tmp_path / "run", validation=source)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_generator_is_judged_by_the_updated_discriminator(precision: str) -> None:
    """Autocast must not remember the discriminator's weights from before its update."""
    torch.manual_seed(0)
    config = dataclasses.replace(
        PRESETS["paper-srgan-mse"], generator=GeneratorConfig(blocks=1, width=8), crop=32, batch=2, precision=precision
    )
    generator, discriminator = Generator(config.generator), Discriminator(width=8)
    step = EagerStep(generator, losses.mse, config, discriminator)
    lr, hr = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        sr = generator(lr)
        before = float(losses.adversarial(discriminator(sr)))
    adversarial = float(step(lr, hr, 0)["adversarial"])
    with torch.no_grad():
        after = float(losses.adversarial(discriminator(sr)))
    assert abs(adversarial - after) < 0.1 * abs(adversarial - before)
