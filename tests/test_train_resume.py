"""Going on: a resumed run is the uninterrupted one, and what is not is said."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training import TINY, photos, read_log, small, start_of

from srgan_fast import weights
from srgan_fast.errors import CheckpointError, Interrupted, OutputError, UsageError
from srgan_fast.model import Generator
from srgan_fast.train import checkpoint
from srgan_fast.train import trainer as trainer_module
from srgan_fast.train.config import PRESETS, TrainConfig
from srgan_fast.train.graph_step import make_step
from srgan_fast.train.trainer import Trainer

__all__ = ["photos", "small"]
pytestmark = pytest.mark.usefixtures("small")


def recipe(stage: str, folder: Path) -> tuple[TrainConfig, Path | None]:
    config = dataclasses.replace(TINY, decay="drop", final_learning_rate=1e-5, steps=12)
    if stage == "srresnet":
        return config, None
    config = dataclasses.replace(config, stage="srgan")
    return config, start_of(folder, config)


def stopping(at: int, number: int = signal.SIGTERM) -> Callable[[int, Any], None]:
    return lambda step, _: os.kill(os.getpid(), number) if step == at else None


def assert_same(one: Trainer, other: Trainer) -> None:
    for part in ("generator", "average", "discriminator"):
        network = getattr(one.step, part)
        for key, value in network.state_dict().items() if network is not None else ():
            assert torch.equal(value, getattr(other.step, part).state_dict()[key]), (part, key)


@pytest.mark.parametrize("stage", ["srresnet", "srgan"])
def test_resumed_equals_uninterrupted(photos: Path, tmp_path: Path, stage: str) -> None:
    config, initial = recipe(stage, tmp_path)
    whole = Trainer(config, photos, tmp_path / "whole", initial=initial)
    whole.run()
    for stop in (1, config.steps // 2 - 1, config.steps // 2, config.steps - 1):
        parts = tmp_path / f"stopped at {stop}"
        first = Trainer(config, photos, parts, initial=initial)
        with pytest.raises(Interrupted, match="--resume"):
            first.run(stopping(stop))
        torch.manual_seed(999)  # resuming must not lean on the process's random state
        second = Trainer(config, photos, parts, resume=True)
        assert second.position == stop
        second.run()
        assert_same(whole, second)
        files = [weights.load(folder / "model.safetensors").info for folder in (tmp_path / "whole", parts)]
        assert files[0].digest == files[1].digest
        assert [line["content"] for line in read_log(parts)[0]] == [
            line["content"] for line in read_log(tmp_path / "whole")[0]
        ]


@pytest.mark.slow
def test_the_real_network_resumes_to_the_bit(photos: Path, tmp_path: Path) -> None:
    """The paper's network for 300 steps with `make soak`, for 6 small ones otherwise; stopped twice, anywhere."""
    soak = os.environ.get("SRGAN_FAST_SOAK") == "1"
    if soak:
        torch.set_num_threads(2)  # the fixture sets it back
    steps = 300 if soak else 6
    config = dataclasses.replace(
        PRESETS["paper-srresnet-mse"], steps=steps, precision="fp32", crop=48, batch=16 if soak else 2
    )
    Trainer(config, photos, tmp_path / "whole").run()
    stops = sorted(np.random.default_rng().choice(np.arange(1, steps), 2, replace=False).tolist())
    for index, stop in enumerate([*stops, None]):
        run = Trainer(config, photos, tmp_path / "parts", resume=index > 0)
        if stop is None:
            run.run()
            continue
        with pytest.raises(Interrupted):
            run.run(stopping(stop))
    digests = [weights.load(tmp_path / part / "model.safetensors").info.digest for part in ("whole", "parts")]
    assert digests[0] == digests[1], f"stopped after {stops}"


def test_a_resumed_decay_over_other_steps_says_so(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = dataclasses.replace(TINY, decay="cosine", steps=2)
    Trainer(config, photos, tmp_path / "run").run()
    Trainer(dataclasses.replace(config, steps=4), photos, tmp_path / "run", resume=True)
    assert "falls over 4 steps instead of 2" in caplog.text


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "run"
    Trainer(dataclasses.replace(TINY, steps=4), photos, out, save_every=2).run()
    newest = checkpoint.checkpoints(out)[-1]
    data = bytearray(newest.read_bytes())
    data[-100] ^= 1
    newest.write_bytes(bytes(data))
    assert Trainer(TINY, photos, out, resume=True).position == 2
    assert "damaged" in caplog.text


def test_another_run_cannot_be_resumed(photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "run"
    Trainer(dataclasses.replace(TINY, steps=1), photos, out).run()
    with pytest.raises(CheckpointError, match="batch"):
        Trainer(dataclasses.replace(TINY, batch=1), photos, out, resume=True)
    torch.set_num_threads(2)
    Trainer(TINY, photos, out, resume=True)
    assert "equal in value, not in bits: resumed with a difference in threads (1 before, 2 now)" in caplog.text


def test_the_terms_are_those_of_the_first_start(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = Trainer(dataclasses.replace(TINY, steps=3), photos, out)
    first.run()
    second = Trainer(dataclasses.replace(TINY, steps=5), photos, out, resume=True)
    assert second.terms == first.terms
    assert weights.load(second.run()).info.recipe["terms"] == first.terms


def test_other_images_are_told(photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("0.png", "1.png"):
        (folder / name).write_bytes((photos / name).read_bytes())
    config = dataclasses.replace(TINY, steps=1)
    Trainer(config, folder, tmp_path / "run").run()
    Trainer(config, folder, tmp_path / "run", resume=True)
    assert "images have changed" not in caplog.text
    (folder / "1.png").write_bytes((photos / "2.png").read_bytes())
    Trainer(config, folder, tmp_path / "run", resume=True)
    assert "images have changed" in caplog.text


def test_a_second_ctrl_c_stops_at_once_and_sigterm_never_does(photos: Path, tmp_path: Path) -> None:
    """A launcher passes SIGTERM on to its ranks after the Ctrl-C that they have had already."""

    def both(step: int, _: object) -> None:
        if step == 2:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
                os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match="after step 2"):
        Trainer(TINY, photos, tmp_path / "one").run(both)
    assert Trainer(TINY, photos, tmp_path / "one", resume=True).position == 2

    def twice(step: int, _: object) -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        Trainer(TINY, photos, tmp_path / "two").run(twice)
    assert Trainer(TINY, photos, tmp_path / "two", resume=True).position == 0  # there is always one


def test_the_end_of_a_terminal_saves_but_not_under_nohup(photos: Path, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        ignored = Trainer(dataclasses.replace(TINY, steps=3), photos, tmp_path / "nohup")
        assert ignored.run(stopping(2, signal.SIGHUP)) is not None
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with pytest.raises(Interrupted, match="after step 2"):
            Trainer(TINY, photos, tmp_path / "run").run(stopping(2, signal.SIGHUP))
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)
    assert Trainer(TINY, photos, tmp_path / "run", resume=True).position == 2


def test_a_time_limit_cuts_a_run_into_slices(photos: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, steps=6)
    whole = Trainer(config, photos, tmp_path / "whole")
    whole.run()
    slices, paths = 0, []
    while not paths or paths[-1] is None:
        trainer = Trainer(config, photos, tmp_path / "parts", resume=bool(paths), time_limit_s=1e-9)
        paths.append(trainer.run())
        slices += 1
        assert trainer.position == slices
    assert slices == 6
    assert_same(whole, trainer)
    with pytest.raises(UsageError, match="time limit"):
        Trainer(config, photos, tmp_path / "other", time_limit_s=0)


def test_half_written_files_of_a_killed_run_are_removed(photos: Path, tmp_path: Path) -> None:
    Trainer(dataclasses.replace(TINY, steps=1), photos, tmp_path).run()
    for name in (".step_00000002.ckpt.part", ".0123456789abcdef.part"):
        (tmp_path / name).write_bytes(b"half")
    Trainer(dataclasses.replace(TINY, steps=2), photos, tmp_path, resume=True).run()
    assert list(tmp_path.glob(".*.part")) == []


def test_two_checkpoints_are_kept_and_none_newer_than_the_last(photos: Path, tmp_path: Path) -> None:
    Trainer(dataclasses.replace(TINY, steps=3), photos, tmp_path, save_every=1).run()
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step_00000002.ckpt", "step_00000003.ckpt"]
    (tmp_path / "step_00000009.ckpt").write_bytes(b"damaged")
    Trainer(dataclasses.replace(TINY, steps=4), photos, tmp_path, resume=True).run()
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step_00000003.ckpt", "step_00000004.ckpt"]


def test_a_full_disk_keeps_the_checkpoint_before(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    trainer = Trainer(dataclasses.replace(TINY, steps=4), photos, tmp_path, save_every=2)

    def fill(step: int, _: object) -> None:
        if step == 4:
            monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(OutputError, match="make room and resume"):
        trainer.run(fill)
    monkeypatch.undo()
    assert Trainer(TINY, photos, tmp_path, resume=True).position == 2
    assert list(tmp_path.glob(".*.part")) == []


def test_nothing_to_resume(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="found none that is whole"):
        Trainer(TINY, photos, tmp_path, resume=True)


def test_advice_where_all_checkpoints_are_damaged_does_not_lead_in_a_circle(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without --resume a folder with checkpoints is refused, so that is not what to do."""
    (tmp_path / "step_00000007.ckpt").write_bytes(b"srgan-fast checkpoint 3\nand no more")
    with pytest.raises(CheckpointError, match="none that is whole; remove them to begin anew"):
        Trainer(TINY, photos, tmp_path, resume=True)
    assert "step_00000007.ckpt is damaged and is passed over" in caplog.text


def test_a_run_that_is_past_its_end_is_not_said_to_be_trained(photos: Path, tmp_path: Path) -> None:
    whole = dataclasses.replace(TINY, steps=3)
    path = Trainer(whole, photos, tmp_path).run()
    assert path is not None
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match="at step 3, past the 2"):
        Trainer(dataclasses.replace(TINY, steps=2), photos, tmp_path, resume=True)
    assert Trainer(whole, photos, tmp_path, resume=True).position == 3
    assert path.read_bytes() == before


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("settled", [True, False])
def test_a_finished_run_keeps_its_scores_without_validation_images(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, norm: str, settled: bool
) -> None:
    """And the batch statistics that were chosen by them."""
    if not settled:  # those anew are worse on the images
        monkeypatch.setattr(trainer_module, "reestimated", lambda network, _: Generator(network.config).eval())
    config = dataclasses.replace(TINY, steps=2, generator=dataclasses.replace(TINY.generator, norm=norm))
    path = Trainer(config, photos, tmp_path, validation=photos).run()
    first = weights.load(path).info
    assert first.recipe["val_psnr_db"] > 0
    for _ in range(2):
        again = Trainer(config, photos, tmp_path, resume=True)
        again.run()
        found = weights.load(path).info
        assert (found.digest, found.recipe) == (first.digest, first.recipe)
        assert again.summary["scores"].keys() == {"val_psnr_db", "val_ssim"}
    longer = dataclasses.replace(config, steps=3)
    assert "val_psnr_db" not in weights.load(Trainer(longer, photos, tmp_path, resume=True).run()).info.recipe


def test_a_launcher_that_starts_again_resumes(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives the command of the first start, without --resume, and says so in the environment."""
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    first = Trainer(TINY, photos, tmp_path)  # it may have ended before there was a checkpoint
    with pytest.raises(Interrupted):
        first.run(stopping(3))
    assert Trainer(TINY, photos, tmp_path).position == 3
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    with pytest.raises(UsageError, match="--resume"):
        Trainer(TINY, photos, tmp_path)


def test_what_may_change_when_a_run_goes_on(photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Trainer(dataclasses.replace(TINY, steps=2), photos, tmp_path).run()
    slower = dataclasses.replace(TINY, learning_rate=1e-5, clip=0.1)
    Trainer(slower, photos, tmp_path, resume=True)
    assert "learning_rate is 1e-05 instead of 0.0001" in caplog.text
    assert "clip is 0.1 instead of 0.0" in caplog.text
    wider = dataclasses.replace(TINY, seed=1, generator=dataclasses.replace(TINY.generator, width=8))
    with pytest.raises(CheckpointError, match=r"differs in width \(4 before, 8 now\), seed \(0 before, 1 now\);"):
        Trainer(wider, photos, tmp_path, resume=True)


def test_conditions_that_differ_are_named(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A checkpoint of four ranks and a graph on a GPU goes on here, equal in value."""
    on_gpu = {"torch": str(torch.__version__), "precision": "fp32", "device": "H100", "ranks": 4, "step": "graph"}
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "conditions", lambda *_, kernels: on_gpu | {"kernels": True})
        Trainer(dataclasses.replace(TINY, steps=1), photos, tmp_path).run()
    trainer = Trainer(dataclasses.replace(TINY, steps=2), photos, tmp_path, resume=True)
    (said,) = [record.message for record in caplog.records if "not in bits" in record.message]
    for word in ("device (H100 before, cpu now)", "ranks (4 before", "step (graph before", "kernels (True before"):
        assert word in said
    assert trainer.step.kind == "eager"
    caplog.clear()
    trainer.run()
    Trainer(dataclasses.replace(TINY, steps=2), photos, tmp_path, resume=True)
    assert "not in bits" not in caplog.text


@pytest.mark.parametrize(
    ("was", "asked", "got"),
    [
        ({"device": "cpu", "step": "eager", "kernels": False}, ("auto", "auto"), ("eager", "off", True)),
        ({"device": "cpu", "step": "eager", "kernels": False}, ("auto", "on"), ("eager", "on", False)),
        ({"device": "cpu", "step": "graph", "kernels": True}, ("auto", "auto"), ("auto", "on", True)),
        ({"device": "cpu", "step": "graph", "kernels": True}, ("graph", "auto"), ("graph", "on", False)),
        ({"device": "H100", "step": "graph", "kernels": True}, ("auto", "auto"), ("auto", "auto", True)),
    ],
)
def test_auto_means_what_it_meant_before(
    was: dict[str, Any],
    asked: tuple[str, str],
    got: tuple[str, str, bool],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Trainer(dataclasses.replace(TINY, steps=1), photos, tmp_path).run()
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    checkpoint.save(tmp_path, dataclasses.replace(newest, conditions=newest.conditions | was))
    seen: list[tuple[str, str, bool]] = []

    def chosen(kind: str, kernels: str, *arguments: Any, **options: Any) -> Any:
        seen.append((kind, kernels, options["fall_back"]))
        return make_step("eager", "off", *arguments, **options)

    monkeypatch.setattr(trainer_module, "make_step", chosen)
    Trainer(TINY, photos, tmp_path, resume=True, step=asked[0], kernels=asked[1])
    assert seen == [got]


def test_a_checkpoint_of_the_version_before_opens(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = Trainer(dataclasses.replace(TINY, steps=2), photos, tmp_path)
    trainer.run()
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    state = {key: value for key, value in newest.state.items() if key != "seconds"}
    state["random"] = state["random"]["cpu"]
    config = {key: value for key, value in newest.config.items() if key != "sync_bn"}
    old = {"step": 2, "state": state, "config": config, "conditions": {"torch": "2.11", "threads": 1}}
    buffer = io.BytesIO()
    torch.save(old, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest().encode()
    for path in checkpoint.checkpoints(tmp_path):
        path.write_bytes(b"srgan-fast checkpoint 2\n" + digest + b"\n" + buffer.getvalue())
    resumed = Trainer(TINY, photos, tmp_path, resume=True)
    assert (resumed.position, resumed.salt) == (2, 0)
    assert_same(trainer, resumed)
    assert "not in bits" in caplog.text
    for path in checkpoint.checkpoints(tmp_path):
        path.write_bytes(b"srgan-fast checkpoint 1\n" + digest + b"\n" + buffer.getvalue())
    with pytest.raises(CheckpointError, match="none that is whole"):
        Trainer(TINY, photos, tmp_path, resume=True)
    assert "another version" in caplog.text
