"""Training checkpoints: atomic, checked, two kept, and a run that resumes from one is the run that never stopped."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from srgan_fast import archive
from srgan_fast.atomic import atomic
from srgan_fast.errors import CheckpointError, OutputError
from srgan_fast.train.config import TrainConfig

_log = logging.getLogger(__name__)
_KIND = b"srgan-fast checkpoint "
_MAGIC = _KIND + b"3\n"
# Written before there were GPUs, ranks and rollbacks; all else is the same.
_OLDER = _KIND + b"2\n"
_KEPT = 2
# What may change when a run goes on, because it is how a run is lengthened or saved from diverging.
_FREE = {"steps", "precision", "learning_rate", "final_learning_rate", "clip"}


@dataclass(frozen=True)
class Checkpoint:
    """The state before step `step`: what the next step depends on, and the conditions that its bits rest on.

    `salt` is the number of rollbacks before it, which the draws of the batches depend on.
    """

    step: int
    salt: int
    state: dict[str, Any]
    config: dict[str, Any]
    conditions: dict[str, Any]


def conditions(device: torch.device, precision: str, ranks: int, step: str, *, kernels: bool) -> dict[str, Any]:
    """What bit-for-bit equality of a resumed run rests on; `precision` is the one in use, never auto."""
    found: dict[str, Any] = {"torch": str(torch.__version__), "precision": precision}
    if device.type == "cuda":
        found["device"] = torch.cuda.get_device_name(device)
    else:
        capability = torch.backends.cpu.get_cpu_capability()
        found |= {"device": "cpu", "cpu": capability, "threads": torch.get_num_threads()}
    return found | {"ranks": ranks, "step": step, "kernels": kernels}


def save(folder: Path, content: Checkpoint) -> Path:
    """Write a checkpoint, and drop all but it and the newest before it.

    Raises:  OutputError if it cannot be written; the checkpoints before it are kept
    """
    buffer = io.BytesIO()
    torch.save({name: getattr(content, name) for name in Checkpoint.__dataclass_fields__}, buffer)
    data = buffer.getvalue()
    path = folder / f"step_{content.step:08d}.ckpt"
    try:
        with atomic(path) as file:
            file.write(_MAGIC + hashlib.sha256(data).hexdigest().encode() + b"\n")
            file.write(data)
        _sync(folder)
        # What is newer than this one could not be read, or this run would have gone on from it.
        good = [other for other in checkpoints(folder) if other.name <= path.name]
        for other in set(checkpoints(folder)) - set(good[-_KEPT:]):
            other.unlink()
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; make room and resume") from error
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    return sorted(folder.glob("step_*.ckpt"))


def clean(folder: Path) -> None:
    """Remove the half-written files of a run that was killed; only for who has the folder to itself."""
    with suppress(OSError):  # they take room and do no other harm
        for part in folder.glob(".*.part"):
            part.unlink()


def newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; those that are not are named in the log.

    Raises:  CheckpointError if one cannot be read at all
    """
    for path in reversed(checkpoints(folder)):
        found = _read(path)
        if isinstance(found, Checkpoint):
            return found
        _log.warning("%s %s and is passed over", path.name, found)
    return None


def check(found: Checkpoint, config: TrainConfig) -> None:
    """Refuse the checkpoint of another run, and say what goes on in another way than it began.

    Raises:  CheckpointError if it belongs to another run
    """
    # A choice that came after it was written was made as the default is.
    was = {key: _plain(value) for key, value in (asdict(TrainConfig()) | found.config).items()}
    now = {key: _plain(value) for key, value in asdict(config).items()}
    changed = [key for key, value in now.items() if was[key] != value]
    other = sorted(set(changed) - _FREE)
    if other:
        said = ", ".join(_change(key, was[key], now[key]) for key in other)
        raise CheckpointError(
            f"the checkpoint of step {found.step} is of a run that differs in {said}; give what that run had,"
            " or start a new folder"
        )
    if config.steps < found.step:
        raise CheckpointError(
            f"the run is at step {found.step}, past the {config.steps} that were asked for; give --steps of at least"
            f" {found.step}"
        )
    if "steps" in changed and config.decay != "none":
        _log.warning("the rate falls over %d steps instead of %d from here on: another run", config.steps, was["steps"])
    for key in sorted(set(changed) - {"steps", "precision"}):
        _log.warning("%s is %s instead of %s from here on: another run", key, getattr(config, key), was[key])


def differences(found: Checkpoint, now: Mapping[str, Any]) -> str:
    """In what a resumed run differs from the run before; empty where it goes on bit for bit."""
    was = found.conditions
    keys = [key for key in dict.fromkeys([*was, *now]) if was.get(key) != now.get(key)]
    return ", ".join(f"{key} ({was.get(key, 'unknown')} before, {now.get(key, 'none')} now)" for key in keys)


def _read(path: Path) -> Checkpoint | str:
    """The checkpoint, or what is the matter with it."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}; check its permissions") from error
    start = len(_MAGIC) + 65
    if not data.startswith((_MAGIC, _OLDER)):
        return "is of another version of srgan-fast" if data.startswith(_KIND) else "is damaged"
    if hashlib.sha256(data[start:]).hexdigest().encode() != data[start - 65 : start - 1]:
        return "is damaged"
    try:
        content: Any = archive.unpickle(io.BytesIO(data[start:]))
        if data.startswith(_OLDER):
            content["salt"] = 0
            content["state"]["random"] = {"cpu": content["state"]["random"], "cuda": []}
            content["state"]["seconds"] = 0.0
        return Checkpoint(**content)
    except MemoryError:
        raise
    except Exception:  # whoever made it has made its digest too, and torch's reader stumbles over anything
        return "is damaged"


def _sync(folder: Path) -> None:
    """Make the rename survive a power cut, before an older checkpoint is dropped for it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _change(name: str, was: Any, now: Any) -> str:
    """What differs, before and now; of a record the parts that do."""
    if isinstance(was, dict) and isinstance(now, dict):
        return ", ".join(_change(key, was.get(key), value) for key, value in now.items() if was.get(key) != value)
    return f"{name} ({was} before, {now} now)"


def _plain(value: Any) -> Any:
    """As it comes back from a file."""
    return list(value) if isinstance(value, tuple) else value
