"""Weights in and out: safetensors with metadata of our own, and the checkpoints of others through `community`.

A file of ours carries, as JSON in the safetensors header, everything that is needed to rebuild the network and to
know where it came from, and a digest of the tensors, which is checked whenever it is read.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from srgan_fast import archive, community
from srgan_fast.atomic import atomic
from srgan_fast.calibration import Calibration, from_metadata, to_metadata
from srgan_fast.errors import OutputError, UsageError, WeightsError
from srgan_fast.model import ARCHITECTURES

_BUNDLED = Path(__file__).parent / "data"
_KEY = "srgan_fast"
_CHECK = "srgan_fast_sha256"  # of the metadata, as the digest is of the tensors

# Where training scripts put a state_dict: averaged weights first, then a generator beside other networks, then the only
# network; and the prefixes under which they put a generator's tensors beside others.
_GENERATOR = r"(net_?|model_?)?(g|gen|generator)(_?(net|model))?"
_STATE = r"(_?(model_?)?(state_?dict|state|params|weights))?"
_CONTAINERS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"(params|model|net|{_GENERATOR})?_?ema(_?model)?{_STATE}",
        r"params",
        _GENERATOR + _STATE,
        rf"(model|net|network)?{_STATE}",
    )
)
_PREFIXES = (
    re.compile(r"(generator|gen|net_?G|G)_ema\.", re.IGNORECASE),
    re.compile(r"(generator|gen|net_?G|g_?model|model_?g)\.", re.IGNORECASE),
    re.compile(r"G\."),
)
_WRAPPERS = re.compile(r"(_orig_mod|module|model|net)\.")

# Even a network of thousands of tensors needs a hundredth of it.
_MAX_HEADER_BYTES = 8 << 20


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
    """A network in eval mode, float32, without gradients, and what is known of it; with scales it also runs in int8."""

    network: nn.Module
    info: ModelInfo
    calibration: Calibration | None = None


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
        return _ours(path, tensors, metadata)
    if any('"digest"' in value for value in metadata.values()):
        raise WeightsError(f"the metadata of {path} is damaged (its name has changed); fetch the file again")
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
    calibration: Calibration | None = None,
) -> ModelInfo:
    """Write a network atomically: the file is whole or it is not there.

    Raises:  OutputError if it cannot be written; UsageError for int8 scales of other weights
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
    if calibration is not None and calibration.weights != info.digest:
        raise UsageError("expected int8 scales of these weights, got those of others; run srgan-fast calibrate")
    text = json.dumps(asdict(info), sort_keys=True)
    metadata = {_KEY: text, _CHECK: hashlib.sha256(text.encode()).hexdigest()}
    content = safetensors.torch.save(tensors, metadata | (to_metadata(calibration) if calibration else {}))
    try:
        with atomic(path) as file:
            file.write(content)
    except OSError as error:
        raise OutputError(f"cannot write the weights to {path}: {error.strerror}; name a writable folder") from error
    return info


def convert(source: Path, target: Path, name: str | None = None) -> ModelInfo:
    """Read any recognised checkpoint and write it as a weights file of ours; nothing is written on an error."""
    return save_model(target, load(source), name or target.stem)


def save_model(path: Path, model: Model, name: str | None = None) -> ModelInfo:
    """Write a model as it was read, its int8 scales too, under its own name or another; see `save`."""
    info = model.info
    return save(
        path,
        model.network,
        name=name or info.name,
        recipe=info.recipe,
        source=info.source,
        assumptions=info.assumptions,
        input_range=info.input_range,
        output_range=info.output_range,
        calibration=model.calibration,
    )


def digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over the tensors in the order of their names: name, dtype, shape, bytes."""
    total = hashlib.sha256()
    for key in sorted(tensors):
        value = tensors[key].detach().cpu().contiguous()
        total.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors, PyTorch or ncnn file, and its metadata; code in a pickle is never run.

    Raises:  WeightsError for a file that is none of these, or damaged
    """
    if path.suffix in (".bin", ".param") and path.with_suffix(".param").is_file():
        return _checked(path, _read_ncnn(path.with_suffix(".param"), path.with_suffix(".bin"))), {}
    try:
        archive.check_size(path)
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}; check the file's permissions") from error
    if not head:
        raise WeightsError(f"expected weights, got an empty file: {path}; fetch it again")
    try:
        if head[8:9] == b"{":
            header = int.from_bytes(head[:8], "little")
            if header > _MAX_HEADER_BYTES:
                raise ValueError(f"its header claims {header} bytes, {_MAX_HEADER_BYTES} at most")
            with safetensors.safe_open(path, framework="pt") as stored:
                metadata = dict(stored.metadata() or {})
                tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
            return _checked(path, tensors if _KEY in metadata else unwrap(tensors, path.name)), metadata
        return _checked(path, unwrap(archive.unpickle(path), path.name)), {}
    except WeightsError:
        raise
    except Exception as error:
        # Both parsers meet damaged files with whatever they stumble over: EOFError, RuntimeError, KeyError...
        raise WeightsError(_unreadable(path, error)) from error


def unwrap(content: object, file_name: str) -> dict[str, Tensor]:
    """The generator's tensors out of what a training script saved around them.

    Raises:  WeightsError if there are none
    """
    for _ in range(4):  # not for ever: a pickled dictionary may hold itself
        content = _inner(content)
    items = content.items() if isinstance(content, Mapping) else ()
    tensors = {str(key): value.detach() for key, value in items if isinstance(value, Tensor)}
    # A lone number without a dot in its name is a counter beside the network, such as that of an averaged model.
    tensors = {key: value for key, value in tensors.items() if "." in key or value.dim()}
    if not tensors:
        raise WeightsError(f"expected tensors by name in {file_name}, got none; save the generator's state_dict")
    while True:
        prefix = next((match[0] for rule in _PREFIXES for key in tensors if (match := rule.match(key))), None)
        if prefix is None:
            match = _WRAPPERS.match(next(iter(tensors)))
            if match is None or not all(key.startswith(match[0]) for key in tensors):
                return tensors
            prefix = match[0]
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _inner(content: object) -> object:
    """What a dictionary holds under a name that is usual for the network, else its only network, else itself."""
    if not isinstance(content, Mapping):
        return content
    inner = {str(key): value for key, value in content.items() if isinstance(value, Mapping) and value}
    for rule in _CONTAINERS:
        for key, value in inner.items():
            if rule.fullmatch(key) and any(isinstance(item, (Tensor, Mapping)) for item in value.values()):
                return value
    if any(isinstance(value, Tensor) and value.dim() == 4 for value in content.values()):
        return content
    networks = [
        value
        for value in inner.values()
        if any(isinstance(item, Tensor) and item.dim() == 4 and isinstance(name, str) for name, item in value.items())
    ]
    return networks[0] if len(networks) == 1 else content


def _read_ncnn(param: Path, binary: Path) -> dict[str, Tensor]:
    """An SRVGGNetCompact out of ncnn's two files, under the names that its PyTorch checkpoints use."""
    tensors: dict[str, Tensor] = {}
    try:
        for part in (param, binary):
            archive.check_size(part)
        lines = param.read_text().splitlines()
        data = binary.read_bytes()
        offset = index = 0
        channels = 3
        if lines[0].strip() != "7767517":
            raise ValueError("no ncnn magic number")
        for line in lines[2:]:
            kind, _, inputs, outputs, *rest = line.split()
            options = dict(item.split("=") for item in rest[int(inputs) + int(outputs) :])
            if kind == "Convolution":
                out, size, count = int(options["0"]), int(options["1"]), int(options["6"])
                if min(out, size, count) < 1:
                    raise ValueError("a convolution without weights")
                (tag,) = struct.unpack_from("<I", data, offset)
                if tag not in (0, 0x01306B47):
                    raise ValueError("weights neither fp16 nor fp32")
                dtype, item = ("<f2", 2) if tag else ("<f4", 4)
                weight = np.frombuffer(data, dtype, count, offset + 4).astype(np.float32)
                offset += 4 + (item * count + 3) // 4 * 4
                bias = np.frombuffer(data, "<f4", out, offset).copy()
                offset += 4 * out
                tensors[f"body.{index}.weight"] = torch.from_numpy(weight.reshape(out, channels, size, size))
                tensors[f"body.{index}.bias"] = torch.from_numpy(bias)
                index, channels = index + 1, out
            elif kind == "PReLU":
                slopes = np.frombuffer(data, "<f4", int(options["0"]), offset).copy()
                offset += slopes.nbytes
                tensors[f"body.{index}.weight"] = torch.from_numpy(slopes)
                index += 1
            elif kind not in ("Input", "Split", "PixelShuffle", "Interp", "BinaryOp"):
                raise ValueError(f"a layer of kind {kind}")
        if offset != len(data):
            raise ValueError(f"{len(data) - offset} bytes left over")
    except WeightsError:
        raise
    except (OSError, ValueError, LookupError, OverflowError, struct.error) as error:
        raise WeightsError(
            f"expected an ncnn SRVGGNetCompact, got {param.name} ({_first_line(error)}); fetch both files"
        ) from error
    return tensors


def _checked(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Plain dense numbers that the file really holds: a pickle can claim any shape over a few bytes."""
    for key, value in tensors.items():
        if value.layout is not torch.strided or value.is_quantized or value.is_complex() or value.device.type != "cpu":
            raise WeightsError(f"expected plain tensors in {path}, got {value.dtype} {key!r:.60}; save them as float32")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise WeightsError(f"{key!r:.60} of {path} claims more numbers than the file holds; fetch it again")
        if value.is_floating_point() and not torch.isfinite(value.float()).all():
            raise WeightsError(f"{key!r:.60} of {path} holds NaN or infinity; take an earlier checkpoint")
        if key.endswith(".running_var") and (value < 0).any():
            raise WeightsError(f"{key!r:.60} of {path} holds a negative variance: damaged; fetch it again")
    return tensors


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:120]


def _unreadable(path: Path, error: Exception) -> str:
    if "Unsupported global" in str(error) or "Unsupported class" in str(error):
        return f"{path} holds Python objects, and loading them could run code; save its state_dict alone"
    if "TorchScript" in str(error):
        return f"{path} holds a TorchScript program, which would be run as code; save its state_dict alone"
    if isinstance(error, pickle.UnpicklingError):  # what torch says of it is a page of advice
        error = pickle.UnpicklingError("neither begins like one")
    hint = "; ncnn weights need their .param file beside them" if path.suffix == ".bin" else ""
    return (
        f"expected safetensors or PyTorch weights, got a file that cannot be read as such: {path}"
        f" ({type(error).__name__}: {_first_line(error)}); fetch it again{hint}"
    )


def _ours(path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> Model:
    text = metadata[_KEY]
    if hashlib.sha256(text.encode()).hexdigest() != metadata.get(_CHECK, hashlib.sha256(text.encode()).hexdigest()):
        raise WeightsError(f"the metadata of {path} does not match its digest: the file is damaged; fetch it again")
    try:
        info = ModelInfo(**{key: _tuples(value) for key, value in json.loads(text).items()})
        for colours in (info.input_range, info.output_range):
            low, high = community.bounds(colours)
            if {len(low), len(high)} - {1, 3} or not (torch.isfinite(high - low) & (low < high)).all():
                raise ValueError(f"colours from {colours[0]!r:.40} to {colours[1]!r:.40}")
        if not all(isinstance(said, str) for said in (info.source, *info.assumptions)):
            raise TypeError("a remark that is no text")
        if not (isinstance(info.name, str) and info.name.isprintable()):
            raise ValueError("a name that cannot be printed")
        if not (isinstance(info.architecture, str) and isinstance(info.config, dict) and isinstance(info.recipe, dict)):
            raise TypeError("a field of another kind")
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise WeightsError(f"the metadata of {path} is damaged ({_first_line(error)}); fetch the file again") from error
    if digest(tensors) != info.digest:
        raise WeightsError(f"the tensors of {path} do not match their digest: the file is damaged; fetch it again")
    network = _build(path, info.architecture, info.config, tensors)
    if info.scale != network.scale:
        raise WeightsError(f"the metadata of {path} is damaged (scale {info.scale!r:.20}); fetch the file again")
    return Model(network, info, from_metadata(metadata, network, info.digest, path))


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _build(path: Path, architecture: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    if architecture not in ARCHITECTURES:
        raise WeightsError(
            f"{path} is for the network {architecture!r:.40}; this version knows {', '.join(ARCHITECTURES)}"
        )
    kind, config_type = ARCHITECTURES[architecture]
    stored = {
        # Own memory: what a file gives may be a view of it.
        key: (value.float() if value.is_floating_point() else value).clone(memory_format=torch.contiguous_format)
        for key, value in tensors.items()
    }
    try:
        # Nothing is built that only the metadata claims: a block has a tensor at the least, and meta takes no memory.
        if config["blocks"] > len(stored):
            raise ValueError(f"{config['blocks']} blocks in {len(stored)} tensors")
        with torch.device("meta"):
            network: nn.Module = kind(config_type(**config))
        network.load_state_dict(stored, assign=True)
    except (TypeError, ValueError, LookupError, ArithmeticError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise WeightsError(f"{path} does not fit the network that it names ({reason}); convert it again") from error
    return network.eval().requires_grad_(False)
