"""The exported graph in two: the trunk, which sees the whole frame, and the tail, which takes it a few rows at a time.

Nearly all memory goes to the tail's maps, so an engine that runs the two by themselves is held to a band of them, as
eager is, and gives the same picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from srgan_fast.export.graph import FRAMES, INPUT, OUTPUT, Frames, Options, onnx_bytes
from srgan_fast.model import receptive_radius
from srgan_fast.weights import Model

# What engines run together with the operation before them, over its result.
_POINTWISE = frozenset({"PRelu", "LeakyRelu", "Relu", "Tanh", "Add", "Mul", "Clip", "Floor", "Cast"})
# Engines keep channels in blocks.
_BLOCK = 8


@dataclass(frozen=True)
class Parts:
    """A model in two, each part a serialised ONNX ModelProto.

    `trunk` takes frames as float32 [n, 3, h, w] in [0, 1] and gives features [n, channels, h, w]. Each of `tails` takes
    features and, where `wants_frames`, the frames that they came from, as uint8 [n, h, w, 3] or as float32 again, and
    gives the picture alike.

    Units:  radii in LR pixels; `live` in bytes a LR pixel, of what lives at once inside each part, where activations
            take no memory of their own
    """

    trunk: bytes
    tails: dict[Frames, bytes]
    channels: int
    wants_frames: bool
    radius: int | None
    tail_radius: int
    live: dict[str, float]


def in_parts(model: Model, precision: Literal["fp32", "fp16"]) -> Parts:
    """A model in two, for engines whose memory should stay bounded.

    Raises:  what `onnx_bytes` raises
    """
    written = {kind: onnx_bytes(model, Options(precision, kind, leaky_relu=True)) for kind in FRAMES}

    import onnx
    from onnx.utils import Extractor

    whole = {kind: onnx.shape_inference.infer_shapes(onnx.load_from_string(each)) for kind, each in written.items()}
    name = _first_of_tail(model.network)
    features = next(node.input[0] for node in whole["float"].graph.node if node.name == name)
    trunk = Extractor(whole["float"]).extract_model([INPUT], [features])
    tails = {kind: Extractor(whole[kind]).extract_model([features, INPUT], [OUTPUT]) for kind in FRAMES}
    wants_frames = any(INPUT in node.input for node in tails["float"].graph.node)
    if not wants_frames:
        for tail in tails.values():
            del tail.graph.input[1]
    parts = {"trunk": trunk, "tail": tails["float"]}
    return Parts(
        trunk=trunk.SerializeToString(deterministic=True),
        tails={kind: tail.SerializeToString(deterministic=True) for kind, tail in tails.items()},
        channels=trunk.graph.output[0].type.tensor_type.shape.dim[1].dim_value,
        wants_frames=wants_frames,
        radius=receptive_radius(model.network),
        tail_radius=receptive_radius(model.network, tail_only=True) or 0,
        live={key: _live_bytes(part) for key, part in parts.items()},
    )


def _first_of_tail(network: Any) -> str:
    """The name of the first convolution that runs in a network's tail."""
    ran: list[str] = []
    frame = next(network.parameters()).new_zeros(1, 3, 8, 8)
    with torch.inference_mode():
        features = network.trunk(frame)
        hooks = [
            module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
            for name, module in network.named_modules()
            if isinstance(module, nn.Conv2d)
        ]
        try:
            network.tail(features, frame)
        finally:
            for hook in hooks:
                hook.remove()
    return ran[0]


def _live_bytes(part: Any) -> float:
    """What a part's values take at most while it runs, its own inputs and outputs apart, in bytes a LR pixel."""
    import onnx

    size = 16
    sized = onnx.ModelProto()
    sized.CopyFrom(part)
    for value in sized.graph.input:
        nchw = value.type.tensor_type.shape.dim[1].dim_value
        for dim, length in zip(value.type.tensor_type.shape.dim, (1, nchw or size, size, size), strict=True):
            if not dim.dim_value:
                dim.dim_value = length
    del sized.graph.value_info[:]
    for value in sized.graph.output:
        value.type.tensor_type.ClearField("shape")
    graph = onnx.shape_inference.infer_shapes(sized, strict_mode=True).graph
    outside = {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    bytes_of = {value.name: _size_bytes(value) for value in graph.value_info if value.name not in outside}
    last = {name: i for i, node in enumerate(graph.node) for name in node.input}
    now, peak = 0, 0
    for i, node in enumerate(graph.node):
        dying = [name for name in dict.fromkeys(node.input) if last[name] == i and name in bytes_of]
        (out,) = node.output
        if node.op_type in _POINTWISE and dying:
            now -= bytes_of[dying.pop(0)]
        now += bytes_of.get(out, 0)
        peak = max(peak, now)
        now -= sum(bytes_of[name] for name in dying)
    return peak / size**2


def _size_bytes(value: Any) -> int:
    import onnx

    kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    if len(shape) == 4 and shape[-1] != 3:
        shape[1] = -(-shape[1] // _BLOCK) * _BLOCK
    return int(math.prod(shape) * kind.itemsize)
