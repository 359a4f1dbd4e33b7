"""int8: the op's arithmetic, the program, and the scales in a weights file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from test_fused import frames, model_of, result_of
from torch.nn import functional as F

from srgan_fast import kernels, weights
from srgan_fast.backends import fused, program, select, selfcheck
from srgan_fast.backends.fused import FusedBackend
from srgan_fast.calibration import Calibration, quantised_layers, to_metadata
from srgan_fast.errors import BackendUnavailable, UsageError, WeightsError
from srgan_fast.model import CompactConfig, Generator, GeneratorConfig, SRVGGNetCompact
from srgan_fast.rewrite import folded, without_last_shuffle

Run = Callable[..., tuple[int, str, str]]

NETWORKS: dict[str, Callable[[], torch.nn.Module]] = {
    "paper's layout": lambda: Generator(GeneratorConfig(blocks=2, width=16)),
    "no blocks": lambda: Generator(GeneratorConfig(blocks=0, width=16, prelu="channel")),
    "x2, PReLU after the skip": lambda: Generator(GeneratorConfig(blocks=1, width=32, scale=2, skip_end="prelu")),
    "x8": lambda: Generator(GeneratorConfig(blocks=1, width=16, scale=8)),
    "compact": lambda: SRVGGNetCompact(CompactConfig(blocks=3, width=16)),
    "compact without an inner layer": lambda: SRVGGNetCompact(CompactConfig(blocks=0, width=16)),
}


def scaled(model: weights.Model, scale: float = 0.02) -> weights.Model:
    """The model with scales that are not those of its values, but of their kind."""
    scales = {name: scale * (1 + 0.1 * i) for i, name in enumerate(quantised_layers(model.network))}
    found = Calibration(scales, model.info.digest, 99.99, 1, "", 30.0, 0.01, 0.1)
    return replace(model, calibration=found)


@pytest.fixture(params=NETWORKS, ids=str)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> weights.Model:
    return scaled(model_of(NETWORKS[request.param](), tmp_path))


@pytest.fixture
def small(tmp_path: Path) -> weights.Model:
    return model_of(NETWORKS["paper's layout"](), tmp_path)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the backend start without a GPU; the ops then run their references."""
    monkeypatch.setattr(fused, "why_not_triton", lambda device: None)


# --- the op's arithmetic ------------------------------------------------------------------------------------------


def by_integers(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The sums in int64, tap by tap and input by input."""
    n, h, w, cin = x.shape
    padded = F.pad(x.long(), (0, 0, 1, 1, 1, 1))
    total = torch.zeros(n, h, w, weight.shape[-1], dtype=torch.int64)
    for tap in range(9):
        window = padded[:, tap // 3 : tap // 3 + h, tap % 3 : tap % 3 + w]
        for i in range(cin):
            total += window[..., i, None] * weight[tap, i].long()
    return total


def test_the_references_sums_are_exact_at_their_largest() -> None:
    op = kernels.load("conv3x3_int8")
    (case,) = [case for case in op.CASES if "extreme" in case.name]
    given = case.inputs("cpu", torch.float32)
    sums = by_integers(given["x"], given["weight"])
    assert sums.abs().max() == 9 * 112 * 127 * 127 < 2**24
    # Odd sums of this size, which float32 holds and nothing narrower does.
    given["x"][0, 0, 0, 0] = 126
    sums = by_integers(given["x"], given["weight"])
    ones, zeros = torch.ones(sums.shape[-1]), torch.zeros(sums.shape[-1])
    got = op.reference(given["x"], given["weight"], ones, zeros, torch.float32)
    assert torch.equal(got.long(), sums)


def test_each_float_operation_rounds_once() -> None:
    op = kernels.load("conv3x3_int8")
    (case,) = [case for case in op.CASES if "residual, to float32" in case.name]
    given = case.inputs("cpu", torch.float32)
    sums = by_integers(given["x"], given["weight"]).numpy().astype(np.float32)
    gain, bias, slopes, residual = (given[name].numpy() for name in ("gain", "bias", "slopes", "residual"))
    v = sums * gain
    v = v + bias
    v = np.where(v >= 0, v, v * slopes)
    v = v + residual
    got = op.reference(**given).numpy()
    assert v.dtype == np.float32
    assert np.array_equal(got.view(np.int32), v.view(np.int32))
    # The case tells: with one rounding for product and sum, some values differ.
    fused_once = (sums.astype(np.float64) * gain + bias).astype(np.float32)
    fused_once = np.where(fused_once >= 0, fused_once, fused_once * slopes) + residual
    assert not np.array_equal(got, fused_once)


def test_int8_rounds_half_to_even_and_keeps_its_range() -> None:
    quantise = kernels.load("quantise_int8").run
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.4, 1e6, -127.5, -1e6, 0.499]).view(1, 1, 1, -1)
    assert quantise(x, 1.0).flatten().tolist() == [0, 2, 2, 0, -2, 126, 127, 127, -127, -127, 0]


def test_the_second_result_is_the_first_one_quantised() -> None:
    op = kernels.load("conv3x3_int8")
    (case,) = [case for case in op.CASES if case.name == "2x8x16, 64 to 64, residual, both"]
    for dtype in (torch.float16, torch.float32):
        given = case.inputs("cpu", dtype)
        first = op.run(**given)
        assert torch.equal(given["quantised"], kernels.load("quantise_int8").run(first, given["inverse"]))
    # Rounded first: what float16 loses before is not seen by the second.
    wide = op.run(**{**given, "quantised": None})
    assert torch.equal(wide, first)


@pytest.mark.parametrize("r", [1, 2, 3])
def test_packed_weights_are_next_to_their_own(r: int) -> None:
    op = kernels.load("conv3x3_int8")
    torch.manual_seed(0)
    weight, bias = torch.randn(4 * r * r, 16, 3, 3), torch.randn(4 * r * r)
    weight[1] = 0
    packed = op.pack(weight, bias, 0.5, 0.25, r)
    columns = packed["weight"].view(9, 16, r * r, 4).permute(3, 2, 1, 0).reshape(4 * r * r, 16, 9)
    gain = packed["gain"].view(r * r, 4).t().reshape(-1)
    steps = weight.reshape(4 * r * r, 16, 9) / (gain.view(-1, 1, 1) / 2)
    assert (columns - steps).abs().max() < 1
    # The sum of a kernel is rounded as a whole.
    assert (columns.sum(-1) - steps.sum(-1)).abs().max() <= 0.5001
    assert columns.abs().amax((1, 2)).tolist() == [0 if i == 1 else 127 for i in range(4 * r * r)]
    assert torch.equal(packed["bias"].view(r * r, 4).t().reshape(-1), bias / 0.25)


# --- the program --------------------------------------------------------------------------------------------------


def plain_int8(model: weights.Model, lr: torch.Tensor) -> torch.Tensor:
    """The network in int8 written down from its modules: float ends in float16, whole numbers between them."""
    network = without_last_shuffle(folded(model.network))
    names = {id(module): name for name, module in network.named_modules()}
    assert model.calibration is not None
    scales = model.calibration.scales
    head, tail, frame = (kernels.load(name) for name in ("head", "tail", "frame_input"))
    op = kernels.load("conv3x3_int8")

    def scale(conv: object) -> float:
        return scales[names[id(conv)]]

    def quantised(x: torch.Tensor, conv: object) -> torch.Tensor:
        inverse = torch.tensor(1 / scale(conv), dtype=torch.float32)
        return torch.round(x.float() * inverse).clamp(-127, 127)

    def conv(x: torch.Tensor, module: torch.nn.Conv2d, slopes: torch.Tensor | None, to: float = 1.0) -> torch.Tensor:
        packed = op.pack(module.weight, module.bias, scale(module), to)
        kernel = packed["weight"].reshape(3, 3, -1, module.out_channels).permute(3, 2, 0, 1).double()
        v = F.conv2d(x.double().permute(0, 3, 1, 2), kernel, padding=1).permute(0, 2, 3, 1).float()
        v = v * packed["gain"]
        v = v + packed["bias"]
        return v if slopes is None else torch.where(v >= 0, v, v * slopes)

    def whole(v: torch.Tensor) -> torch.Tensor:
        return torch.round(v).clamp(-127, 127)

    def shuffled(x: torch.Tensor) -> torch.Tensor:
        return F.pixel_shuffle(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)

    def slopes(module: torch.nn.Module, channels: int) -> torch.Tensor:
        return module.weight.expand(channels).contiguous()

    ones = torch.ones(3)
    x = frame.run(lr, ones / 255, 0 * ones, torch.float16)
    first, act = (network.head[0], network.head[1]) if isinstance(network, Generator) else network.body[:2]
    packed_head = head.pack(first.weight).half()
    x = head.run(x, packed_head, first.bias, slopes(act, first.out_channels))
    low, high = model.info.output_range
    gain, offset = ones / (high - low), -low * ones / (high - low)
    if isinstance(network, SRVGGNetCompact):
        layers = list(network.body[2:])
        for i, module in enumerate(layers[::2]):
            q = quantised(x, module) if i == 0 else x
            following = layers[2 * i + 2] if 2 * i + 2 < len(layers) else None
            v = conv(q, module, slopes(layers[2 * i + 1], module.out_channels), scale(following) if following else 1.0)
            x = whole(v) if following else v.half()
        packed = kernels.load("conv3x3").pack(network.output.weight).half()
        base = frame.run(lr, ones / 255, 0 * ones, torch.float16)
        return tail.run(x, packed, network.output.bias, gain, offset, network.scale, torch.float32, base=base)
    skip = x
    for block in network.body:
        inner = conv(quantised(x, block.conv1), block.conv1, slopes(block.prelu, x.shape[-1]), scale(block.conv2))
        x = (conv(whole(inner), block.conv2, None) + x.float()).half()
    end = slopes(network.skip[1], x.shape[-1]) if isinstance(network.skip[1], torch.nn.PReLU) else None
    x = (conv(quantised(x, network.skip[0]), network.skip[0], end) + skip.float()).half()
    q = quantised(x, network.upsample[0].conv)
    for stage, following in zip(network.upsample[:-1], network.upsample[1:], strict=True):
        # PReLU after the shuffle, as the network has it.
        v = shuffled(conv(q, stage.conv, None, scale(following.conv)))
        q = whole(torch.where(v >= 0, v, v * slopes(stage.prelu, v.shape[-1])))
    last = network.upsample[-1]
    x = conv(q, last.conv, slopes(last.prelu, last.conv.out_channels)).half()
    output = network.output[0]
    packed = kernels.load("conv3x3").pack(output.weight).half()
    return tail.run(x, packed, output.bias, gain, offset, 2, torch.float32)


def through_program(model: weights.Model, lr: torch.Tensor) -> torch.Tensor:
    network = without_last_shuffle(folded(model.network))
    cpu = torch.device("cpu")
    steps = program.walk(network, model.info, torch.float16, cpu, model.calibration)
    n, h, w, _ = lr.shape
    layout = program.place(steps, n, h, w, lr.dtype)
    # Twice, over memory of which nothing is right before it is written.
    results = []
    for poison in (0x55, 0xFF):
        memory = torch.full((layout.size_bytes,), poison, dtype=torch.uint8)
        calls, views = program.bind(steps, layout, memory, n, h, w, lr.dtype)
        views["frames"].copy_(lr)
        program.run_all(calls)
        results.append(views["pixels"].clone())
    assert torch.equal(*results)
    return results[0]


def test_the_program_equals_a_plain_emulation_to_the_bit(model: weights.Model) -> None:
    lr = frames(2, 7, 9)
    want = plain_int8(model, lr)
    # Through uint8 frames, whose pixels are the floats rounded.
    got = through_program(model, lr)
    assert torch.equal(got, (want * 255 + 0.5).floor().to(torch.uint8))
    inner = quantised_layers(model.network)
    steps = program.walk(
        without_last_shuffle(folded(model.network)), model.info, torch.float16, torch.device("cpu"), model.calibration
    ).steps
    assert sum(step.op == "conv3x3_int8" for step in steps) == len(inner)
    assert not any(step.op in ("conv3x3", "conv3x3_shuffle") for step in steps)


@pytest.mark.usefixtures("on_cpu")
def test_the_bundled_model_passes_its_self_check_in_int8() -> None:
    backend = FusedBackend(weights.load("srresnet_x4"), "cpu", "int8")
    assert backend.precision == "int8"
    assert all(outcome.passed for outcome in backend.check)
    assert result_of(backend, frames(1, 9, 8)).shape == (1, 36, 32, 3)


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize(
    ("change", "op"),
    [
        (lambda call: call | {"weight": call["weight"].flip(0)}, "conv3x3_int8"),
        (lambda call: call | {"gain": call["gain"] * 1.2}, "conv3x3_int8"),
        (lambda call: call | {"inverse": call["inverse"] * 2}, "quantise_int8"),
    ],
    ids=["taps reversed", "gain", "inverse"],
)
def test_the_self_check_refuses_a_broken_int8_op(
    change: Callable[[dict[str, object]], dict[str, object]], op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = kernels.load(op).run
    monkeypatch.setattr(kernels.load(op), "run", lambda **call: right(**change(call)))
    monkeypatch.setattr(selfcheck, "CHECK_SIZE", (9, 13))
    with pytest.raises(BackendUnavailable, match="disagrees with eager"):
        FusedBackend(weights.load("srresnet_x4"), "cpu", "int8")


@pytest.mark.usefixtures("on_cpu")
def test_int8_is_refused_where_it_cannot_be(small: weights.Model, tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match="no int8 scales; make one that has them with srgan-fast calibrate"):
        select("fused", small, "cpu", "int8")
    with pytest.raises(BackendUnavailable, match="int8 is for the backend fused"):
        select("eager", scaled(small), "cpu", "int8")
    narrow = scaled(model_of(Generator(GeneratorConfig(blocks=1, width=8)), tmp_path))
    with pytest.raises(BackendUnavailable, match="int8 takes a multiple of 16 inputs, at most 112, not 8; take fp16"):
        select("fused", narrow, "cpu", "int8")
    # Never by itself.
    assert FusedBackend(scaled(small), "cpu", "auto").precision == "fp16"


# --- scales in a file ---------------------------------------------------------------------------------------------


def test_scales_survive_a_file_and_a_conversion(small: weights.Model, tmp_path: Path) -> None:
    whole = scaled(small)
    weights.save_model(tmp_path / "a.safetensors", whole)
    weights.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    for name in ("a", "b"):
        again = weights.load(tmp_path / f"{name}.safetensors")
        assert again.calibration == whole.calibration
        assert again.info.digest == small.info.digest
    assert small.calibration is None
    assert whole.calibration is not None
    others = replace(whole, calibration=replace(whole.calibration, weights=""))
    with pytest.raises(UsageError, match="int8 scales of these weights"):
        weights.save_model(tmp_path / "c.safetensors", others)


def edited(path: Path, change: Callable[[dict[str, object]], object]) -> Path:
    """The file with other text for its scales, and the digest that belongs to it."""
    import hashlib

    with safetensors.safe_open(path, framework="pt") as stored:
        metadata, tensors = dict(stored.metadata()), {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
    content = json.loads(metadata["srgan_fast_int8"])
    text = json.dumps(change(content) or content)
    metadata |= {"srgan_fast_int8": text, "srgan_fast_int8_sha256": hashlib.sha256(text.encode()).hexdigest()}
    target = path.with_name("edited.safetensors")
    safetensors.torch.save_file(tensors, target, metadata)
    return target


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda c: c.update(version=2),
            "of version 2, expected 1; fetch it again, or run srgan-fast calibrate on the weights",
        ),
        (lambda c: c.pop("version") and None, "cannot be read"),
        (lambda c: [1, 2], "cannot be read"),
        (lambda c: c.pop("scales") and None, "not complete"),
        (lambda c: c.update(more=1), "not complete"),
        (lambda c: c.update(weights="0"), "made for other weights"),
        (lambda c: c["scales"].popitem() and None, "a scale above 0"),
        (lambda c: c["scales"].update({"skip.0": 0.0}), "a scale above 0"),
        (lambda c: c["scales"].update({"skip.0": "1"}), "a scale above 0"),
        (lambda c: c.update(scales=[1.0]), "a scale above 0"),
    ],
)
def test_damaged_scales_are_named(
    small: weights.Model, tmp_path: Path, change: Callable[[dict[str, object]], object], said: str
) -> None:
    path = tmp_path / "a.safetensors"
    weights.save_model(path, scaled(small))
    with pytest.raises(WeightsError, match=said):
        weights.load(edited(path, change))


def test_a_bit_in_the_scales_is_noticed(small: weights.Model, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    weights.save_model(path, scaled(small))
    content = path.read_bytes()
    assert content.count(b"30.0") == 1
    path.write_bytes(content.replace(b"30.0", b"31.0"))
    with pytest.raises(WeightsError, match="do not match their digest"):
        weights.load(path)


def test_metadata_holds_nothing_else() -> None:
    found = Calibration({"a": 0.5}, "d", 100.0, 1, "e", 30.0, 0.0, 0.1)
    assert set(to_metadata(found)) == {"srgan_fast_int8", "srgan_fast_int8_sha256"}
