"""Weights in and out: safetensors with metadata of our own, and the checkpoints of others through `community`.

A file of ours carries, as JSON in the safetensors header, everything that is needed to rebuild the network and to
know where it came from, and a digest of the tensors, which is checked whenever it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from srgan_fast import community
from srgan_fast.errors import OutputError, UsageError, WeightsError
from srgan_fast.model import ARCHITECTURES

_BUNDLED = Path(__file__).parent / "data"
_KEY = "srgan_fast"


@dataclass(frozen=True)
class ModelInfo:
    """What a weights file says of its network.

    Units:  `input_range` and `output_range` are the network's own; the public boundary is always [0, 1]
    """

    name: str
    architecture: str
    config: dict[str, Any]
    scale: int
    input_range: community.Range
    output_range: community.Range
    digest: str
    recipe: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    assumptions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Model:
    """A network in eval mode, float32, without gradients, and what is known of it."""

    network: nn.Module
    info: ModelInfo


def bundled() -> list[str]:
    """The names of the models that ship with the package."""
    return sorted(path.stem for path in _BUNDLED.glob("*.safetensors"))


def load(source: str | Path) -> Model:
    """Read a bundled model by name, a weights file of ours, or a community checkpoint that is recognised.

    Raises:  UsageError if there is no such name or file; WeightsError if it holds no usable weights
    """
    path = Path(source)
    if str(source) in bundled():
        path = _BUNDLED / f"{source}.safetensors"
    elif not path.is_file():
        raise UsageError(f"expected a weights file or one of the bundled models ({', '.join(bundled())}), got {source}")
    tensors, metadata = read_tensors(path)
    if _KEY in metadata:
        return _ours(path, tensors, metadata[_KEY])
    found = community.recognise(tensors, path.name)
    network = _build(path, found.architecture, found.config, found.tensors)
    return Model(
        network,
        ModelInfo(
            name=path.stem,
            architecture=found.architecture,
            config=found.config,
            scale=int(network.scale),  # type: ignore[arg-type]
            input_range=found.input_range,
            output_range=found.output_range,
            digest=digest(network.state_dict()),
            source=f"{found.layout} checkpoint {path.name}",
            assumptions=found.assumptions,
        ),
    )


def save(
    path: Path,
    network: nn.Module,
    *,
    name: str,
    recipe: Mapping[str, Any],
    source: str = "",
    assumptions: tuple[str, ...] = (),
    input_range: community.Range = (0.0, 1.0),
    output_range: community.Range = (-1.0, 1.0),
) -> ModelInfo:
    """Write a network atomically: the file is whole or it is not there.

    Raises:  OutputError if it cannot be written
    """
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in network.state_dict().items()}
    info = ModelInfo(
        name=name,
        architecture=next(key for key, (kind, _) in ARCHITECTURES.items() if type(network) is kind),
        config=asdict(network.config),  # type: ignore[call-overload]
        scale=int(network.scale),  # type: ignore[arg-type]
        input_range=input_range,
        output_range=output_range,
        digest=digest(tensors),
        recipe=dict(recipe),
        source=source,
        assumptions=assumptions,
    )
    content = safetensors.torch.save(tensors, {_KEY: json.dumps(asdict(info), sort_keys=True)})
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as part:
            try:
                part.write(content)
                part.flush()
                os.fsync(part.fileno())
                os.chmod(part.name, 0o644)
                os.replace(part.name, path)
            except BaseException:
                os.unlink(part.name)
                raise
    except OSError as error:
        raise OutputError(f"cannot write the weights to {path}: {error.strerror}; name a writable folder") from error
    return info


def convert(source: Path, target: Path, name: str | None = None) -> ModelInfo:
    """Read any recognised checkpoint and write it as a weights file of ours; nothing is written on an error."""
    model = load(source)
    info = model.info
    return save(
        target,
        model.network,
        name=name or target.stem,
        recipe=info.recipe,
        source=info.source,
        assumptions=info.assumptions,
        input_range=info.input_range,
        output_range=info.output_range,
    )


def digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over the tensors in the order of their names: name, dtype, shape, bytes."""
    total = hashlib.sha256()
    for key in sorted(tensors):
        value = tensors[key].detach().cpu().contiguous()
        total.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        total.update(value.numpy().tobytes())
    return total.hexdigest()


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors, PyTorch or ncnn file, and its metadata; code in a pickle is never run.

    Raises:  WeightsError for a file that is none of these, or damaged
    """
    if path.suffix in (".bin", ".param") and path.with_suffix(".param").is_file():
        return community.read_ncnn(path.with_suffix(".param"), path.with_suffix(".bin")), {}
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}; check the file's permissions") from error
    if not head:
        raise WeightsError(f"expected weights, got an empty file: {path}; fetch it again")
    try:
        if head[8:9] == b"{":
            with safetensors.safe_open(path, framework="pt") as stored:
                return {key: stored.get_tensor(key) for key in stored.keys()}, dict(stored.metadata() or {})  # noqa: SIM118
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (safetensors.SafetensorError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise WeightsError(_unreadable(path, error)) from error
    except Exception as error:
        # torch.load meets damaged files with whatever its parser stumbles over: EOFError, RuntimeError, KeyError...
        raise WeightsError(_unreadable(path, error)) from error
    return community.unwrap(content, path.name), {}


def _unreadable(path: Path, error: Exception) -> str:
    if "Unsupported global" in str(error) or "Unsupported class" in str(error):
        return f"{path} holds Python objects, and loading them could run code; save its state_dict alone"
    reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
    return f"expected safetensors or PyTorch weights, got a file that cannot be read as such: {path} ({reason})"


def _ours(path: Path, tensors: dict[str, Tensor], text: str) -> Model:
    try:
        fields = json.loads(text)
        info = ModelInfo(**{key: _tuples(value) for key, value in fields.items()})
    except (ValueError, TypeError) as error:
        raise WeightsError(f"the metadata of {path} is damaged ({error}); fetch the file again") from error
    if digest(tensors) != info.digest:
        raise WeightsError(f"the tensors of {path} do not match their digest: the file is damaged; fetch it again")
    return Model(_build(path, info.architecture, info.config, tensors), info)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _build(path: Path, architecture: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    if architecture not in ARCHITECTURES:
        raise WeightsError(f"{path} is for the network {architecture!r}; this version knows {', '.join(ARCHITECTURES)}")
    kind, config_type = ARCHITECTURES[architecture]
    try:
        network: nn.Module = kind(config_type(**config))
        network.load_state_dict({key: value.float() if value.is_floating_point() else value
                                 for key, value in tensors.items()})  # fmt: skip
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise WeightsError(f"{path} does not fit the network that it names ({reason}); convert it again") from error
    return network.eval().requires_grad_(False)
