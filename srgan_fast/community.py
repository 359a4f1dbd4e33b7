"""Checkpoints that others trained: recognised by the order and shapes of their tensors, with names as evidence.

`LAYOUTS` has one row a layout. A row's function takes the tensors and returns what they are, or None. The
SRResNet family is one parser, because its members differ only in names and in how they treat colours: `_DIALECTS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

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
_SPOKEN = {_UNIT: "[0, 1]", _SIGNED: "[-1, 1]", _IMAGENET: "ImageNet-normalised"}


@dataclass(frozen=True)
class Recognised:
    """A checkpoint in this project's terms; `assumptions` says what its tensors cannot tell."""

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
    # repr: a damaged file may have line breaks in its names
    seen = ", ".join(f"{key!r:.60} {tuple(tensors[key].shape)}" for key in keys[:4])
    known = dict.fromkeys([*(dialect.name for dialect in _DIALECTS), *LAYOUTS])
    raise WeightsError(
        f"{file_name} has {len(keys)} tensors of a layout that is not known ({seen}{', ...' if len(keys) > 4 else ''});"
        f" known layouts: {', '.join(known)}"
    )


def bounds(colour_range: Range) -> tuple[Tensor, Tensor]:
    """A colour range as two tensors [c, 1, 1] that broadcast over frames."""
    low, high = (torch.tensor(bound, dtype=torch.float32).reshape(-1, 1, 1) for bound in colour_range)
    return low, high


# --- layers in order --------------------------------------------------------------------------------------------


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
        if weight is None or weight.numel() == 0:
            return None
        if weight.dim() == 4 and set(parts) <= {"weight", "bias"}:
            pointwise = weight.shape[2:] == (1, 1)
            if pointwise and layers and layers[-1].kind == "depthwise":
                layers[-1] = _Layer("conv", (layers[-1].parts[0], parts))
            else:
                depthwise = weight.shape[1] == 1 and weight.shape[0] > 1
                layers.append(_Layer("depthwise" if depthwise else "conv", (parts,)))
        elif weight.dim() == 1 and set(parts) == {"weight", "bias", "running_mean", "running_var"}:
            layers.append(_Layer("norm", (parts,)))
        elif weight.dim() == 1 and set(parts) == {"weight"}:
            layers.append(_Layer("prelu", (parts,)))
        else:
            return None
    return layers


_ROLES = {"conv": 0, "cnn": 0, "bn": 1, "norm": 1, "prelu": 2, "relu": 2, "act": 2}


def _natural(key: str) -> list[tuple[int, int, str]]:
    """Sorts block10 after block2, and within a block conv1, bn1, prelu, conv2, bn2: the order in which they run."""
    parts = []
    for part in key.split("."):
        match = re.fullmatch(r"(.*?)(\d{0,9})", part, flags=re.DOTALL)
        word, number = match.groups() if match else (part, "")
        parts.append((int(number) if number else 1, _ROLES.get(word, 0), word))
    return parts


def _orders(tensors: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
    """As saved, and as counted: formats that sort their keys lose the order of the modules."""
    yield tensors
    yield {key: tensors[key] for key in sorted(tensors, key=_natural)}


# --- the SRResNet family ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Dialect:
    """What a project's names tell that its tensors cannot: the order of its parts, and how it treats colours."""

    name: str
    parts: tuple[str, ...]  # in the order in which they run; each starts some key, and each key starts with one
    input_range: Range
    output_range: Range
    activation: str
    norm: str = "none"  # of blocks that carry no normalisation tensors
    unused: str = r"(?!)"  # parameters that the project registers but never applies

    def order(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """The tensors in the order in which they run; None if the names are not this project's."""
        ranks = {}
        for key in tensors:
            rank = next((i for i, part in enumerate(self.parts) if re.match(part, key)), None)
            if rank is None:
                return None
            ranks[key] = rank
        if len(set(ranks.values())) < len(self.parts):
            return None
        ordered = sorted(tensors, key=lambda key: (ranks[key], _natural(key)))
        return {key: tensors[key] for key in ordered if not re.match(self.unused, key)}


_DIALECTS = (
    _Dialect("leftthomas", (r"block\d+\.",), _UNIT, _SIGNED, "tanh"),
    _Dialect(
        "Fast-SRGAN",
        (r"neck\.", r"stem\.", r"bottleneck\.", r"upsampling\.", r"head\."),
        _SIGNED,
        _SIGNED,
        "tanh",
        norm="instance",
    ),
    _Dialect(
        "Lornatang",
        (r"conv(_block)?1\.", r"trunk\.", r"conv(_block)?2\.", r"(upsampling|subpixel_conv)\.", r"conv(_block)?3\."),
        _UNIT,
        _UNIT,
        "none",
    ),
    _Dialect(
        "sgrvinod",
        (r"conv_block1\.", r"residual_blocks\.", r"conv_block2\.", r"subpixel_conv\w*\.", r"conv_block3\."),
        _IMAGENET,
        _SIGNED,
        "tanh",
    ),
    _Dialect("goldhuang", (r"conv1\.", r"residual\d+\.", r"conv2\.", r"upsample\."), _UNIT, _SIGNED, "tanh"),
    _Dialect(
        "Swift-SRGAN",
        (r"initial\.", r"residual\.", r"convblock\.", r"upsampler\.", r"final_conv\."),
        _UNIT,
        _SIGNED,
        "tanh",
        # Every block registers an activation, also the two kinds that are told not to use it.
        unused=r"(residual\.\d+\.block2|convblock)\.act\.",
    ),
)


# The biases of convolutions that a normalisation may follow.
_INNER_BIAS = re.compile(r"(body\.\d+\.conv[12]|skip\.0)(\.[01])?\.bias")


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
        slopes = [self.take("prelu", "head.1").outputs]
        blocks = 0
        norm = False
        while self._is_block(width):
            name = f"body.{blocks}"
            self.take("conv", f"{name}.conv1")
            norm = self.optional("norm", f"{name}.norm1")
            slopes.append(self.take("prelu", f"{name}.prelu").outputs)
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
            slopes.append(self.take("prelu", f"upsample.{stages}.prelu").outputs)
            stages += 1
        output = self.take("conv", "output")
        if self.peek() is not None or output.outputs != 3 or head.inputs != 3 or blocks == 0 or not 1 <= stages <= 3:
            raise _Mismatch
        return {
            "scale": 2**stages,
            "blocks": blocks,
            "width": width,
            "norm": "batch" if norm else "none",
            "prelu": "channel" if max(slopes) > 1 else "shared",
            "kernel": kernel,
            "skip_end": skip_end,
            "bias": any(map(_INNER_BIAS.fullmatch, self.tensors)),
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


def _parsed(ordered: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    layers = _layers(ordered)
    if layers is None:
        return None
    parser = _Parser(layers)
    try:
        config = parser.parse()
        return config, _completed(config, parser.tensors)
    except _Mismatch:
        return None


def _completed(config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Write out what a project may leave implicit, then hold every tensor against the network's own shapes."""
    try:
        with torch.device("meta"):
            wanted = Generator(GeneratorConfig(**config)).state_dict()
    except ValueError as error:
        raise _Mismatch from error
    slopes = re.compile(r".*prelu\.weight|(head|skip)\.1\.weight")
    full = {}
    for key, want in wanted.items():
        value = tensors.get(key)
        if value is None and key.endswith(".bias"):
            value = torch.zeros(want.shape)
        elif value is not None and value.shape == (1,) and slopes.fullmatch(key):
            value = value.expand(want.shape).clone()
        if value is None or value.shape != want.shape:
            raise _Mismatch
        full[key] = value
    if tensors.keys() - wanted.keys():
        raise _Mismatch
    return full


def _instance(config: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The same tensors read as a network with InstanceNorm, whose usual form stores nothing and needs no bias."""
    kept = {key: value for key, value in tensors.items() if not _INNER_BIAS.fullmatch(key) or value.any()}
    config = {**config, "norm": "instance", "skip_end": "norm", "bias": any(map(_INNER_BIAS.fullmatch, kept))}
    return config, _completed(config, kept)


def _srresnet_family(tensors: Mapping[str, Tensor]) -> Recognised | None:
    for dialect in _DIALECTS:
        ordered = dialect.order(tensors)
        parsed = _parsed(ordered) if ordered is not None else None
        if parsed is None:
            continue
        config, ours = parsed
        if dialect.norm == "instance" and config["norm"] == "none" and config["skip_end"] == "none":
            config, ours = _instance(config, ours)
        config["activation"] = dialect.activation
        return Recognised(
            dialect.name,
            "srresnet",
            config,
            ours,
            dialect.input_range,
            dialect.output_range,
            assumptions=(
                f"{_said(config, dialect.input_range, dialect.output_range)}: as the {dialect.name} code has it",
            ),
        )
    for order in _orders(tensors):
        if (parsed := _parsed(order)) is not None:
            return _by_trial(*parsed)
    return None


def _said(config: dict[str, Any], input_range: Range, output_range: Range) -> str:
    said = f"input {_SPOKEN[input_range]}, output {_SPOKEN[output_range]}, output activation {config['activation']}"
    return said + (", InstanceNorm where no normalisation is stored" if config["norm"] == "instance" else "")


def _by_trial(config: dict[str, Any], tensors: dict[str, Tensor]) -> Recognised:
    """Names say nothing: take the treatment of colours under which a smooth picture comes back as itself."""
    axis = torch.linspace(0.1, 0.9, 24)
    picture = torch.stack([axis.expand(24, 24), axis[:, None].expand(24, 24), axis.flip(0).expand(24, 24)])[None]
    want = F.interpolate(picture, scale_factor=config["scale"], mode="bilinear", align_corners=False)
    readings = [(config, tensors)]
    if config["norm"] == "none" and config["skip_end"] == "none":
        readings.append(_instance(config, tensors))
    trials: list[tuple[float, dict[str, Any], dict[str, Tensor], Range, Range]] = []
    for read_config, read_tensors in readings:
        for input_range, output_range, activation in (
            (_UNIT, _SIGNED, "tanh"),
            (_UNIT, _SIGNED, "none"),
            (_UNIT, _UNIT, "none"),
            (_SIGNED, _SIGNED, "tanh"),
            (_SIGNED, _SIGNED, "none"),
            (_IMAGENET, _SIGNED, "tanh"),
        ):
            trial = {**read_config, "activation": activation}
            with torch.device("meta"):
                network = Generator(GeneratorConfig(**trial)).eval()
            stored = {key: value.float() if value.is_floating_point() else value for key, value in read_tensors.items()}
            network.load_state_dict(stored, assign=True)
            low, high = bounds(input_range)
            with torch.inference_mode():
                out = network(picture * (high - low) + low)
            low, high = bounds(output_range)
            error = float((((out - low) / (high - low)).clamp(0, 1) - want).abs().mean())
            # A network that gives no numbers at all comes last.
            trials.append((error if error == error else 1.0, trial, read_tensors, input_range, output_range))
    error, chosen, ours, input_range, output_range = min(trials, key=lambda each: each[0])
    said = _said(chosen, input_range, output_range)
    return Recognised(
        "SRResNet family",
        "srresnet",
        chosen,
        ours,
        input_range,
        output_range,
        assumptions=(f"{said}: of the usual ones, what returns a smooth picture best (mean error {error:.3f})",),
    )


# --- other networks ---------------------------------------------------------------------------------------------


def _compact(tensors: Mapping[str, Tensor]) -> Recognised | None:
    """SRVGGNetCompact: convolutions with PReLU between them, the last to 3 x scale^2 channels."""
    for ordered in _orders(tensors):
        layers = _layers(ordered)
        if layers is None or len(layers) < 3 or any(len(layer.parts) > 1 for layer in layers):
            continue
        kinds = [layer.kind for layer in layers]
        width = layers[0].outputs
        channels = [3, *(width for _ in layers[2::2])]
        scale = round((layers[-1].outputs / 3) ** 0.5)
        if kinds != ["conv", "prelu"] * (len(layers) // 2) + ["conv"] or layers[-1].outputs != 3 * scale**2:
            continue
        ours: dict[str, Tensor] = {}
        for index, layer in enumerate(layers):
            name = f"body.{index}" if index < len(layers) - 1 else "output"
            ours |= {f"{name}.{leaf}": value for leaf, value in layer.parts[0].items()}
        shapes = [(width, inputs, 3, 3) for inputs in channels[:-1]] + [(3 * scale**2, width, 3, 3)]
        if [tuple(layer.parts[0]["weight"].shape) for layer in layers[::2]] != shapes:
            continue
        config = {"scale": scale, "blocks": len(layers) // 2 - 1, "width": width, "activation": "prelu"}
        said = "input and output [0, 1], the nearest-neighbour enlargement added: as the Real-ESRGAN code has it"
        return Recognised("SRVGGNetCompact", "compact", config, ours, assumptions=(said,))
    return None


def _msrresnet(tensors: Mapping[str, Tensor]) -> Recognised | None:
    """MSRResNet of BasicSR (body.N, upconvN) and of mmagic (trunk_net.N, upsampleN.upsample_conv)."""
    names = (
        (r"conv_first\.(\w+)", r"head.\1"),
        (r"(?:body|trunk_net)\.(\d+)\.conv([12])\.(\w+)", r"body.\1.conv\2.\3"),
        (r"(?:upconv1|upsample1\.upsample_conv)\.(\w+)", r"upsample.0.\1"),
        (r"(?:upconv2|upsample2\.upsample_conv)\.(\w+)", r"upsample.1.\1"),
        (r"conv_hr\.(\w+)", r"refine.\1"),
        (r"conv_last\.(\w+)", r"output.\1"),
    )
    ours: dict[str, Tensor] = {}
    for key, value in tensors.items():
        pattern, name = next((rule for rule in names if re.fullmatch(rule[0], key)), ("", ""))
        if not pattern:
            return None
        ours[re.sub(pattern, name, key)] = value
    blocks = len({key.split(".")[1] for key in ours if key.startswith("body.")})
    stages = len({key.split(".")[1] for key in ours if key.startswith("upsample.")})
    first = ours.get("upsample.0.weight")
    if not blocks or first is None or first.dim() != 4 or "refine.weight" not in ours:
        return None
    basicsr = any(key.startswith("upconv1.") for key in tensors)
    width = first.shape[1]
    config = {
        "scale": 3 if first.shape[0] == 9 * width else 2**stages,
        "blocks": blocks,
        "width": width,
        # mmagic's forward has no activation after the sub-pixel stages; that of BasicSR has.
        "upsample_activation": basicsr,
    }
    said = f"input and output [0, 1]: as the {'BasicSR' if basicsr else 'mmagic'} code has it"
    return Recognised("MSRResNet", "msrresnet", config, ours, assumptions=(said,))


LAYOUTS: dict[str, Callable[[Mapping[str, Tensor]], Recognised | None]] = {
    "SRResNet family": _srresnet_family,
    "SRVGGNetCompact": _compact,
    "MSRResNet": _msrresnet,
}
