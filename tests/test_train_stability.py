"""Runs that diverge go back and on with other batches; weights for inference get statistics of whole images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import together
from training import TINY, photos, read_log, small

from srgan_fast import weights
from srgan_fast.errors import TrainingError
from srgan_fast.model import Generator, GeneratorConfig
from srgan_fast.train import checkpoint
from srgan_fast.train.distributed import World
from srgan_fast.train.statistics import reestimated
from srgan_fast.train.trainer import Trainer

__all__ = ["photos", "small"]

pytestmark = pytest.mark.usefixtures("small")

RUN = dataclasses.replace(TINY, steps=6)


def poison(trainer: Trainer, *steps: int, times: int) -> Callable[[int, Any], None]:
    """Spoil a weight after each of the steps, so many times in all."""
    left = times

    def spoil(step: int, _: Any) -> None:
        nonlocal left
        if step in steps and left:
            left -= 1
            next(trainer.step.generator.parameters()).data.fill_(math.nan)

    return spoil


@pytest.mark.parametrize(("after", "said"), [(3, "content is nan at step 4"), (4, "not finite after step 4")])
def test_a_run_that_diverges_goes_back_and_on(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, after: int, said: str
) -> None:
    """At 4 a save is due: the loss before it was finite, the weights no longer are."""
    trainer = Trainer(RUN, photos, tmp_path, save_every=2)
    path = trainer.run(poison(trainer, after, times=1))
    assert path is not None
    assert path.is_file()
    (told,) = [record.message for record in caplog.records if "rollback" in record.message]
    assert said in told
    assert "back to step 2" in told
    steps, events = read_log(tmp_path)
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    (event,) = [event for event in events if event["event"] == "rollback"]
    assert {key: event[key] for key in ("step", "salt")} == {"step": 2, "salt": 1}
    assert said in event["why"]
    assert trainer.step.is_finite()
    assert trainer.summary["rollbacks"] == 1


def test_other_batches_follow_a_rollback_and_a_resume_knows_them(photos: Path, tmp_path: Path) -> None:
    """One run is rolled back and goes on to the end, the other is cut off after it and resumed: equal to the bit."""
    seen: list[tuple[int, int]] = []
    whole = Trainer(RUN, photos, tmp_path / "whole", save_every=2)
    batches = whole.batches

    def watched(step: int, salt: int = 0) -> Any:
        seen.append((step, salt))
        return batches(step, salt)

    whole.batches = watched  # type: ignore[assignment]
    whole.run(poison(whole, 3, times=1))
    assert seen[:8] == [(0, 0), (1, 0), (2, 0), (3, 0), (2, 1), (3, 1), (4, 1), (5, 1)]
    assert not torch.equal(batches(2, 0)[1], batches(2, 1)[1])

    parts = Trainer(RUN, photos, tmp_path / "parts", save_every=2)
    spoil = poison(parts, 3, times=1)

    def cut(step: int, record: Any) -> None:
        spoil(step, record)
        if parts.salt == 1:
            raise KeyboardInterrupt  # as if it were killed: nothing more is saved

    with pytest.raises(KeyboardInterrupt):
        parts.run(cut)
    resumed = Trainer(RUN, photos, tmp_path / "parts", resume=True, save_every=2)
    assert (resumed.position, resumed.salt) == (2, 1)
    resumed.run()
    for one, other in zip(whole.step.average.parameters(), resumed.step.average.parameters(), strict=True):
        assert torch.equal(one, other)


def test_three_rollbacks_to_one_checkpoint_are_enough(photos: Path, tmp_path: Path) -> None:
    trainer = Trainer(RUN, photos, tmp_path, save_every=2)
    with pytest.raises(TrainingError, match=r"3 rollbacks to step 2 .*lower --learning-rate or with --clip"):
        trainer.run(poison(trainer, 3, times=9))
    _, events = read_log(tmp_path)
    assert [event["salt"] for event in events if event["event"] == "rollback"] == [1, 2, 3]
    assert not (tmp_path / "model.safetensors").exists()
    gentle = dataclasses.replace(RUN, learning_rate=1e-5)
    again = Trainer(gentle, photos, tmp_path, resume=True)
    assert (again.position, again.salt) == (2, 3)
    assert again.run() is not None


def test_a_new_checkpoint_starts_the_count_again(photos: Path, tmp_path: Path) -> None:
    """A long run may meet four bad batches; only to fail at one place is to diverge."""
    trainer = Trainer(RUN, photos, tmp_path, save_every=1)
    left = dict.fromkeys((2, 3, 4, 5, 6), 1)

    def spoil(step: int, _: Any) -> None:
        if left.pop(step, 0):
            next(trainer.step.generator.parameters()).data.fill_(math.nan)

    assert trainer.run(spoil) is not None
    assert trainer.salt == 5


def test_a_run_that_diverges_at_once_goes_back_to_its_start(photos: Path, tmp_path: Path) -> None:
    trainer = Trainer(dataclasses.replace(TINY, learning_rate=1e38), photos, tmp_path / "run", save_every=1)
    with pytest.raises(TrainingError, match="3 rollbacks to step 0"):
        trainer.run()
    assert [path.name for path in checkpoint.checkpoints(tmp_path / "run")] == ["step_00000000.ckpt"]


def test_terms_are_read_now_and_then(photos: Path, tmp_path: Path) -> None:
    """As on a GPU: a bad value is found at the next look, with its own step, and before anything is saved."""
    trainer = Trainer(dataclasses.replace(TINY, steps=12), photos, tmp_path, log_every=5, save_every=6)
    calls: list[int] = []
    plain, spoilt = trainer.step, False

    def step(lr: Any, hr: Any, position: int) -> Any:
        nonlocal spoilt
        calls.append(position)
        terms = plain(lr, hr, position)
        if position == 7 and not spoilt:
            spoilt = True
            terms["content"] = torch.tensor(math.inf)
        return terms

    looks: list[list[int]] = []
    read = trainer._look

    def look(progress: Any) -> bool:
        looks.append(calls[:])
        calls.clear()
        return read(progress)

    for name in ("state", "restore", "is_finite", "kind", "kernels", "average", "generator"):
        setattr(step, name, getattr(plain, name))
    trainer.step = step  # type: ignore[assignment]
    trainer._look = look  # type: ignore[method-assign]
    trainer.run()
    assert looks == [[0, 1, 2, 3, 4], [5], [6, 7, 8, 9], [6, 7, 8, 9], [10, 11]]
    _, events = read_log(tmp_path)
    assert [event["why"] for event in events if event["event"] == "rollback"] == ["content is inf at step 8"]


def spoilt_rank(world: World, photos: Path, out: Path) -> tuple[int, int, list[int], str]:
    trainer = Trainer(RUN, photos, out, save_every=2, device="cpu", world=world)
    seen: list[int] = []
    spoil = poison(trainer, 4, times=world.rank)  # of rank 1 alone, where a save is due

    def progress(step: int, record: Any) -> None:
        seen.append(step)
        spoil(step, record)

    trainer.run(progress)
    return trainer.position, trainer.salt, seen, weights.digest(trainer.step.average.state_dict())


def test_ranks_go_back_together(photos: Path, tmp_path: Path) -> None:
    one, other = together(spoilt_rank, photos, tmp_path)
    assert one == other
    assert one[:3] == (6, 1, [1, 2, 3, 4, 3, 4, 5, 6])


def test_statistics_are_those_of_the_batches() -> None:
    torch.manual_seed(0)
    network = Generator(GeneratorConfig(blocks=2, width=8)).eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    batches = [torch.rand(3, 3, 8, 8) * share for share in (1.0, 0.5)]
    random = torch.get_rng_state()
    found = reestimated(network, batches)
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    # By hand for the first normalisation: both batches, equal in weight.
    with torch.no_grad():
        values = [network.body[0].conv1(network.head(lr)) for lr in batches]
    norm: Any = found.body[0].norm1
    assert torch.allclose(norm.running_mean, sum(v.mean((0, 2, 3)) for v in values) / 2, atol=1e-6)
    assert torch.allclose(norm.running_var, sum(v.var((0, 2, 3)) for v in values) / 2, rtol=1e-4)
    assert not found.training
    assert norm.momentum == 0.1


def test_what_is_saved_has_statistics_of_its_own(photos: Path, tmp_path: Path) -> None:
    trainer = Trainer(RUN, photos, tmp_path / "batch", validation=photos)
    path = trainer.run()
    assert path is not None
    saved = weights.load(path).network.state_dict()
    kept = trainer.step.average.state_dict()
    told = trainer.summary["statistics"]
    moved = {key for key in kept if not torch.equal(saved[key], kept[key])}
    better = told["val_psnr_db"] >= told["val_psnr_db_before"]
    assert told["kept"] == ("anew" if better else "before")
    assert moved == ({key for key in kept if "running" in key or "num_batches" in key} if better else set())
    assert told["batches"] == 32
    assert told["val_psnr_db_before"] == pytest.approx(trainer.validate()["val_psnr_db"])
    best = max(told["val_psnr_db"], told["val_psnr_db_before"])
    assert best == weights.load(path).info.recipe["val_psnr_db"]
    plain = dataclasses.replace(RUN, generator=dataclasses.replace(RUN.generator, norm="none"))
    trainer = Trainer(plain, photos, tmp_path / "none")
    path = trainer.run()
    assert path is not None
    assert weights.digest(trainer.step.average.state_dict()) == weights.load(path).info.digest
    assert trainer.summary["statistics"] == {}
