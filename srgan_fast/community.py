"""Checkpoints that others trained: recognised by the order and shapes of their tensors, with names as evidence.

`LAYOUTS` has one row a layout. A row's function takes the tensors and returns what they are, or None. The
SRResNet family is one parser, because its members differ only in names and in how they treat colours: `_DIALECTS`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from srgan_fast.errors import WeightsError
from srgan_fast.model import Generator, GeneratorConfig

# A colour range: one number for all channels, or one a channel.
Bound = float | tuple[float, float, float]
Range = tuple[Bound, Bound]

_UNIT: Range = (0.0, 1.0)
_SIGNED: Range = (-1.0, 1.0)
# [0, 1] after the normalisation of torchvision's ImageNet models.
_IMAGENET: Range = (
    (-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225),
    ((1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225),
)


@dataclass(frozen=True)
class Recognised:
    """A checkpoint in this project's terms."""

    layout: str
    architecture: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    input_range: Range = _UNIT
    output_range: Range = _UNIT
    assumptions: tuple[str, ...] = ()


def recognise(tensors: Mapping[str, Tensor], file_name: str) -> Recognised:
    """Tell what network a bag of tensors is.

    Raises:  WeightsError with the keys that were seen and the layouts that are known
    """
    for reader in LAYOUTS.values():
        found = reader(tensors)
        if found is not None:
            return found
    keys = list(tensors)
    seen = ", ".join(f"{key} {tuple(tensors[key].shape)}" for key in keys[:4])
    raise WeightsError(
        f"{file_name} has {len(keys)} tensors of a layout that is not known ({seen}{', ...' if len(keys) > 4 else ''});"
        f" known layouts: {', '.join([*(d.name for d in _DIALECTS), *list(LAYOUTS)[1:]])}"
    )


def unwrap(content: object, file_name: str) -> dict[str, Tensor]:
    """The generator's tensors out of what a training script saved around them.

    Raises:  WeightsError if there are none
    """
    while isinstance(content, Mapping):
        if any(isinstance(value, Tensor) for value in content.values()):
            tensors = {str(key): value.detach() for key, value in content.items() if isinstance(value, Tensor)}
            return {re.sub(r"^(_orig_mod\.|module\.)+", "", key): value for key, value in tensors.items()}
        for name in ("params_ema", "params", "ema_state_dict", "state_dict", "generator", "model", "net"):
            if isinstance(content.get(name), Mapping):
                content = content[name]
                break
        else:
            break
    raise WeightsError(f"expected a dictionary of tensors in {file_name}, found none; save the generator's state_dict")


# --- the SRResNet family ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Dialect:
    """What a project's names tell that its tensors cannot: how it treats colours."""

    name: str
    names: tuple[str, ...]  # every one starts some key
    input_range: Range
    output_range: Range
    activation: str
    norm: str = "none"  # of blocks that carry no normalisation tensors


_DIALECTS = (
    _Dialect("leftthomas", ("block1.", "block8."), _UNIT, _SIGNED, "tanh"),
    _Dialect("Fast-SRGAN", ("neck.", "stem.", "bottleneck."), _SIGNED, _SIGNED, "tanh", norm="instance"),
    _Dialect("Lornatang", ("conv_block1.", "trunk.", "conv_block3."), _UNIT, _UNIT, "none"),
    _Dialect("Lornatang", ("conv1.", "trunk.", "conv3."), _UNIT, _UNIT, "none"),
    _Dialect("sgrvinod", ("conv_block1.", "residual_blocks."), _IMAGENET, _SIGNED, "tanh"),
    _Dialect("sgrvinod", ("net.conv_block1.", "net.residual_blocks."), _IMAGENET, _SIGNED, "tanh"),
    _Dialect("goldhuang", ("conv1.", "residual1.", "upsample."), _UNIT, _SIGNED, "tanh"),
    _Dialect("Swift-SRGAN", ("initial.", "residual.", "final_conv."), _UNIT, _SIGNED, "tanh"),
)


@dataclass(frozen=True)
class _Layer:
    """One module of a checkpoint: `kind` is conv, norm or prelu; a separable convolution has two parts."""

    kind: str
    parts: tuple[dict[str, Tensor], ...]

    @property
    def outputs(self) -> int:
        return self.parts[-1]["weight"].shape[0]

    @property
    def inputs(self) -> int:
        first = self.parts[0]["weight"]
        return first.shape[0] if len(self.parts) == 2 else first.shape[1]


def _layers(tensors: Mapping[str, Tensor]) -> list[_Layer] | None:
    """Group tensors into modules, in order; None if some module is of another kind."""
    modules: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        prefix, _, leaf = key.rpartition(".")
        if leaf != "num_batches_tracked":
            modules.setdefault(prefix, {})[leaf] = value
    layers: list[_Layer] = []
    for parts in modules.values():
        weight = parts.get("weight")
        if weight is None:
            return None
        if weight.dim() == 4:
            pointwise = weight.shape[2:] == (1, 1)
            if pointwise and layers and layers[-1].kind == "depthwise":
                layers[-1] = _Layer("conv", (layers[-1].parts[0], parts))
            else:
                depthwise = weight.shape[1] == 1 and weight.shape[0] > 1
                layers.append(_Layer("depthwise" if depthwise else "conv", (parts,)))
        elif weight.dim() == 1 and "running_mean" in parts:
            layers.append(_Layer("norm", (parts,)))
        elif weight.dim() == 1 and set(parts) == {"weight"}:
            layers.append(_Layer("prelu", (parts,)))
        else:
            return None
    return layers


class _Mismatch(Exception):
    """The layers are not those of an SRResNet."""


class _Parser:
    """Reads layers in the order of an SRResNet and collects their tensors under our names."""

    def __init__(self, layers: list[_Layer]) -> None:
        self.layers, self.position = layers, 0
        self.tensors: dict[str, Tensor] = {}

    def peek(self, ahead: int = 0) -> _Layer | None:
        index = self.position + ahead
        return self.layers[index] if index < len(self.layers) else None

    def take(self, kind: str, name: str) -> _Layer:
        layer = self.peek()
        if layer is None or layer.kind != kind:
            raise _Mismatch
        for part_index, part in enumerate(layer.parts):
            prefix = f"{name}.{part_index}" if len(layer.parts) == 2 else name
            for leaf, value in part.items():
                self.tensors[f"{prefix}.{leaf}"] = value
        if kind == "norm":
            self.tensors[f"{name}.num_batches_tracked"] = torch.tensor(0)
        self.position += 1
        return layer

    def optional(self, kind: str, name: str) -> bool:
        layer = self.peek()
        if layer is None or layer.kind != kind:
            return False
        self.take(kind, name)
        return True

    def parse(self) -> dict[str, Any]:
        """The configuration; the tensors are left in `self.tensors`."""
        head = self.take("conv", "head.0")
        width, kernel = head.outputs, head.parts[0]["weight"].shape[-1]
        slopes = self.take("prelu", "head.1")
        blocks = 0
        norm = False
        bias = True
        while self._is_block(width):
            name = f"body.{blocks}"
            conv = self.take("conv", f"{name}.conv1")
            bias = "bias" in conv.parts[0]
            norm = self.optional("norm", f"{name}.norm1")
            self.take("prelu", f"{name}.prelu")
            self.take("conv", f"{name}.conv2")
            if norm:
                self.take("norm", f"{name}.norm2")
            blocks += 1
        self.take("conv", "skip.0")
        if self.optional("norm", "skip.1"):
            skip_end = "norm"
        else:
            skip_end = "prelu" if self.optional("prelu", "skip.1") else "none"
        stages = 0
        while (layer := self.peek()) is not None and layer.kind == "conv" and layer.outputs == 4 * width:
            self.take("conv", f"upsample.{stages}.conv")
            self.take("prelu", f"upsample.{stages}.prelu")
            stages += 1
        output = self.take("conv", "output")
        if self.peek() is not None or output.outputs != 3 or head.inputs != 3 or blocks == 0 or not 1 <= stages <= 3:
            raise _Mismatch
        return {
            "scale": 2**stages,
            "blocks": blocks,
            "width": width,
            "norm": "batch" if norm else "none",
            "prelu": "channel" if slopes.outputs > 1 else "shared",
            "kernel": kernel,
            "skip_end": skip_end,
            "bias": bias,
            "separable": len(head.parts) == 2,
        }

    def _is_block(self, width: int) -> bool:
        """A convolution of the trunk's width, perhaps a norm, PReLU, then another convolution of that width."""
        after = 2 if (layer := self.peek(1)) is not None and layer.kind == "norm" else 1
        first, slopes, second = self.peek(), self.peek(after), self.peek(after + 1)
        if first is None or slopes is None or second is None or slopes.kind != "prelu":
            return False
        return all(
            layer.kind == "conv" and layer.inputs == width and layer.outputs == width for layer in (first, second)
        )


def _natural(key: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", key)]


def _srresnet_family(tensors: Mapping[str, Tensor]) -> Recognised | None:
    # As saved, and as counted: formats that sort their keys put block 10 before block 2.
    for ordered in (tensors, {key: tensors[key] for key in sorted(tensors, key=_natural)}):
        layers = _layers(ordered)
        if layers is None:
            continue
        parser = _Parser(layers)
        try:
            config = parser.parse()
        except _Mismatch:
            continue
        for dialect in _DIALECTS:
            if all(any(key.startswith(name) for key in tensors) for name in dialect.names):
                if config["norm"] == "none" and dialect.norm == "instance":
                    config |= {"norm": "instance", "skip_end": "norm"}
                config["activation"] = dialect.activation
                return Recognised(
                    dialect.name, "srresnet", config, parser.tensors, dialect.input_range, dialect.output_range
                )
        return _by_trial(config, parser.tensors)
    return None


def _by_trial(config: dict[str, Any], tensors: dict[str, Tensor]) -> Recognised:
    """Names say nothing: take the treatment of colours under which a smooth picture comes back as itself."""
    axis = torch.linspace(0.1, 0.9, 24)
    picture = torch.stack([axis.expand(24, 24), axis[:, None].expand(24, 24), axis.flip(0).expand(24, 24)])[None]
    want = F.interpolate(picture, scale_factor=config["scale"], mode="bilinear", align_corners=False)
    candidates = (
        (_UNIT, _SIGNED, "tanh"),
        (_UNIT, _SIGNED, "none"),
        (_UNIT, _UNIT, "none"),
        (_SIGNED, _SIGNED, "tanh"),
        (_SIGNED, _SIGNED, "none"),
        (_IMAGENET, _SIGNED, "tanh"),
    )
    errors = []
    for input_range, output_range, activation in candidates:
        network = Generator(GeneratorConfig(**{**config, "activation": activation})).eval()
        network.load_state_dict({key: value.float() for key, value in tensors.items()}, strict=False)
        low, high = bounds(input_range)
        with torch.inference_mode():
            out = network(picture * (high - low) + low)
        low, high = bounds(output_range)
        error = float((((out - low) / (high - low)).clamp(0, 1) - want).abs().mean())
        errors.append(error if error == error else float("inf"))
    best = min(range(len(candidates)), key=errors.__getitem__)
    input_range, output_range, activation = candidates[best]
    said = {_UNIT: "[0, 1]", _SIGNED: "[-1, 1]", _IMAGENET: "ImageNet-normalised"}
    return Recognised(
        "SRResNet family",
        "srresnet",
        {**config, "activation": activation},
        tensors,
        input_range,
        output_range,
        assumptions=(
            f"input {said[input_range]}, output {said[output_range]}, output activation {activation}: the choice"
            f" that returns a smooth picture best (mean error {errors[best]:.3f})",
        ),
    )


def bounds(colour_range: Range) -> tuple[Tensor, Tensor]:
    """A colour range as two tensors [c, 1, 1] that broadcast over frames."""
    low, high = (torch.tensor(bound, dtype=torch.float32).reshape(-1, 1, 1) for bound in colour_range)
    return low, high


# --- other networks ---------------------------------------------------------------------------------------------


def _compact(tensors: Mapping[str, Tensor]) -> Recognised | None:
    """SRVGGNetCompact as Real-ESRGAN saves it: body.N is a convolution or the slopes of a PReLU."""
    keys = sorted(tensors, key=_natural)
    if not keys or not all(re.fullmatch(r"body\.\d+\.(weight|bias)", key) for key in keys):
        return None
    indices = sorted({int(key.split(".")[1]) for key in keys})
    convs = [i for i in indices if tensors[f"body.{i}.weight"].dim() == 4]
    slopes = [i for i in indices if i not in convs]
    last = tensors[f"body.{convs[-1]}.weight"]
    scale = round((last.shape[0] / 3) ** 0.5)
    if len(convs) < 2 or 3 * scale**2 != last.shape[0] or slopes != [i + 1 for i in convs[:-1]]:
        return None
    ours = {}
    for key in keys:
        index, leaf = int(key.split(".")[1]), key.split(".")[2]
        ours[f"output.{leaf}" if index == convs[-1] else key] = tensors[key]
    config = {"scale": scale, "blocks": len(convs) - 2, "width": last.shape[1], "activation": "prelu"}
    return Recognised("SRVGGNetCompact", "compact", config, ours)


def _msrresnet(tensors: Mapping[str, Tensor]) -> Recognised | None:
    """MSRResNet of BasicSR (body.N) and of mmagic (trunk_net.N, upsampleN.upsample_conv)."""
    ours: dict[str, Tensor] = {}
    names = (
        (r"(?:generator\.)?conv_first\.(\w+)", r"head.\1"),
        (r"(?:generator\.)?(?:body|trunk_net)\.(\d+)\.conv([12])\.(\w+)", r"body.\1.conv\2.\3"),
        (r"(?:generator\.)?upconv1\.(\w+)|(?:generator\.)?upsample1\.upsample_conv\.(\w+)", r"upsample.0.\1\2"),
        (r"(?:generator\.)?upconv2\.(\w+)|(?:generator\.)?upsample2\.upsample_conv\.(\w+)", r"upsample.1.\1\2"),
        (r"(?:generator\.)?conv_hr\.(\w+)", r"refine.\1"),
        (r"(?:generator\.)?conv_last\.(\w+)", r"output.\1"),
    )
    for key, value in tensors.items():
        for pattern, name in names:
            if re.fullmatch(pattern, key):
                ours[re.sub(pattern, name, key)] = value
                break
        else:
            return None
    blocks = len({key.split(".")[1] for key in ours if key.startswith("body.")})
    stages = len({key.split(".")[1] for key in ours if key.startswith("upsample.")})
    if not blocks or not stages or "refine.weight" not in ours:
        return None
    config = {"scale": 2**stages, "blocks": blocks, "width": ours["refine.weight"].shape[0]}
    return Recognised("MSRResNet", "msrresnet", config, ours)


def read_ncnn(param: Path, binary: Path) -> dict[str, Tensor]:
    """An SRVGGNetCompact out of ncnn's two files, under the names that its PyTorch checkpoints use.

    Raises:  WeightsError if the files are not a chain of convolutions and PReLUs, or do not fit each other
    """
    tensors: dict[str, Tensor] = {}
    try:
        lines = param.read_text().splitlines()
        data = binary.read_bytes()
        offset = index = channels = 0
        if lines[0].strip() != "7767517":
            raise ValueError("no ncnn magic number")
        channels = 3
        for line in lines[2:]:
            kind, _, inputs, outputs, *rest = line.split()
            options = dict(item.split("=") for item in rest[int(inputs) + int(outputs) :])
            if kind == "Convolution":
                out, size, count = int(options["0"]), int(options["1"]), int(options["6"])
                (tag,) = struct.unpack_from("<I", data, offset)
                if tag != 0x01306B47:
                    raise ValueError("expected fp16 weights")
                weight = np.frombuffer(data, "<f2", count, offset + 4).astype(np.float32)
                offset += 4 + (2 * count + 3) // 4 * 4
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
    except (OSError, ValueError, KeyError, IndexError, struct.error) as error:
        raise WeightsError(f"expected an ncnn SRVGGNetCompact, got {param.name} ({error}); fetch both files") from error
    return tensors


LAYOUTS: dict[str, Callable[[Mapping[str, Tensor]], Recognised | None]] = {
    "SRResNet family": _srresnet_family,
    "SRVGGNetCompact": _compact,
    "MSRResNet": _msrresnet,
}
