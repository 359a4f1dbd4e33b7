"""Training checkpoints: atomic, checked, two kept, and a run that resumes from one is the run that never stopped."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from srgan_fast.errors import CheckpointError, OutputError
from srgan_fast.train.config import TrainConfig

_log = logging.getLogger(__name__)
_MAGIC = b"srgan-fast checkpoint 2\n"
_KEPT = 2


def conditions(config: TrainConfig) -> dict[str, Any]:
    """What bit-for-bit equality of a resumed run rests on."""
    return {
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "precision": config.precision,
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }


def save(folder: Path, step: int, state: dict[str, Any], config: TrainConfig) -> Path:
    """Write the state before step `step`, and drop all but the newest two checkpoints.

    Raises:  OutputError if it cannot be written; the checkpoints before it are kept
    """
    buffer = io.BytesIO()
    torch.save({"step": step, "state": state, "config": asdict(config), "conditions": conditions(config)}, buffer)
    content = buffer.getvalue()
    path = folder / f"step_{step:08d}.ckpt"
    part = folder / f".{path.name}.part"
    try:
        with part.open("wb") as file:
            file.write(_MAGIC + hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        _sync(folder)
        for old in checkpoints(folder)[:-_KEPT]:
            old.unlink()
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OutputError(f"cannot write {path}: {error.strerror}; make room and resume") from error
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    return sorted(folder.glob("step_*.ckpt"))


def load(folder: Path, config: TrainConfig) -> tuple[int, dict[str, Any]]:
    """The newest checkpoint that is whole: the step to go on with, and the state.

    Raises:  CheckpointError if there is none, or if it belongs to another run
    """
    for path in reversed(checkpoints(folder)):
        content = _read(path)
        if content is None:
            _log.warning("%s is damaged, or of another version of srgan-fast; the one before it is taken", path.name)
            continue
        changed = [key for key, value in asdict(config).items() if _plain(content["config"].get(key)) != _plain(value)]
        if set(changed) - {"steps", "precision"}:
            raise CheckpointError(f"{path} is of a run with another {', '.join(changed)}; start a new folder")
        if "steps" in changed and config.decay != "none":
            was = content["config"]["steps"]
            _log.warning("the rate falls over %d steps instead of %d from here on: another run", config.steps, was)
        now = conditions(config)
        if now != content["conditions"]:
            different = ", ".join(key for key in now if now[key] != content["conditions"].get(key))
            _log.warning("resumed under another %s: equal in value, not in bits", different)
        return content["step"], content["state"]
    raise CheckpointError(f"expected a checkpoint in {folder}, found none that is whole; start without --resume")


def _sync(folder: Path) -> None:
    """Make the rename survive a power cut, before an older checkpoint is dropped for it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _read(path: Path) -> dict[str, Any] | None:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    start = len(_MAGIC) + 65
    if (
        data[: len(_MAGIC)] != _MAGIC
        or hashlib.sha256(data[start:]).hexdigest().encode() != data[start - 65 : start - 1]
    ):
        return None
    content: dict[str, Any] = torch.load(io.BytesIO(data[start:]), map_location="cpu", weights_only=True)
    return content
