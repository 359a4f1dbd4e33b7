"""Export: one ONNX file that equals the network, whatever the model; the same bytes everywhere; faults are found."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from models import model_of
from onnx import TensorProto, helper, numpy_helper

from srgan_fast import weights
from srgan_fast.backends.eager import EagerBackend
from srgan_fast.community import _IMAGENET, Range
from srgan_fast.errors import ParityError, UsageError
from srgan_fast.export import INPUT, OUTPUT, Options, onnx_bytes
from srgan_fast.export import verify as verification
from srgan_fast.export.graph import _carried
from srgan_fast.export.verify import check_graph, compare, verify
from srgan_fast.model import (
    CompactConfig,
    Generator,
    GeneratorConfig,
    MSRResNet,
    MSRResNetConfig,
    SRVGGNetCompact,
    receptive_radius,
)

Run = Callable[..., tuple[int, str, str]]

SMALL = ((1, 9, 14), (2, 13, 7), (3, 5, 16))
UNIT: Range = (0.0, 1.0)
SIGNED: Range = (-1.0, 1.0)


def generator(**config: Any) -> Generator:
    return Generator(GeneratorConfig(**{"blocks": 2, "width": 8, **config}))


def compact(**config: Any) -> SRVGGNetCompact:
    return SRVGGNetCompact(CompactConfig(**{"blocks": 2, "width": 8, **config}))


def msrresnet(**config: Any) -> MSRResNet:
    return MSRResNet(MSRResNetConfig(**{"blocks": 2, "width": 8, **config}))


# Network, the range that it takes, the range that it gives.
NETWORKS: dict[str, tuple[Callable[[], torch.nn.Module], Range, Range]] = {
    "batch": (generator, UNIT, SIGNED),
    "no norm, x2, unit output": (lambda: generator(norm="none", scale=2), UNIT, UNIT),
    "tanh, x8, prelu at the skip's end": (
        lambda: generator(activation="tanh", scale=8, skip_end="prelu", prelu="channel"),
        UNIT,
        SIGNED,
    ),
    "separable, a slope a channel": (lambda: generator(separable=True, prelu="channel", bias=True), SIGNED, SIGNED),
    "ImageNet's means": (lambda: generator(activation="tanh"), _IMAGENET, _IMAGENET),
    "InstanceNorm": (lambda: generator(norm="instance", activation="tanh", kernel=3), SIGNED, SIGNED),
    "InstanceNorm, affine": (lambda: generator(norm="instance-affine"), UNIT, UNIT),
    "compact": (compact, UNIT, UNIT),
    "compact, x2, relu": (lambda: compact(scale=2, activation="relu"), UNIT, UNIT),
    "compact, x3, leakyrelu": (lambda: compact(scale=3, activation="leakyrelu"), UNIT, UNIT),
    "msrresnet": (msrresnet, UNIT, UNIT),
    "msrresnet, x3, no activation": (lambda: msrresnet(scale=3, upsample_activation=False), UNIT, UNIT),
}


def model_called(name: str, folder: Path) -> weights.Model:
    """Random weights whose pictures have contrast: those of an untrained network are grey all over, however wrong."""
    torch.manual_seed(2)
    make, taken, given = NETWORKS[name]
    network = make()
    last = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)][-1]
    with torch.no_grad():
        last.weight /= 2 * last(torch.randn(1, last.in_channels, 16, 16)).std()
    model = model_of(network, folder)
    return replace(model, info=replace(model.info, input_range=taken, output_range=given))


@pytest.fixture(autouse=True)
def small_frames(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A fifth of the pixels, which networks of eight maps need no more than: the reference in float64 is slow."""
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr(verification, "SHAPES", SMALL)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> weights.Model:
    return model_called("batch", tmp_path_factory.mktemp("export"))


def graph_of(model: weights.Model, **options: Any) -> onnx.ModelProto:
    return onnx.load_model_from_string(onnx_bytes(model, Options(**options)))


def run_file(content: bytes, frames: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    (result,) = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run([OUTPUT], {INPUT: frames})
    return result


def test_the_float_graph_is_eager_to_1e_5() -> None:
    model = weights.load("srresnet_x4_small")
    content = onnx_bytes(model, Options("fp32", "float"))
    backend = EagerBackend(model, "cpu", "fp32")
    for n, height, width in SMALL:
        frames = torch.rand(n, height, width, 3, generator=torch.Generator().manual_seed(n))
        wanted = torch.empty(n, 4 * height, 4 * width, 3)
        backend.run(frames, wanted, height)
        got = run_file(content, frames.permute(0, 3, 1, 2).contiguous().numpy())
        assert float((torch.from_numpy(got).permute(0, 2, 3, 1) - wanted).abs().max()) < 1e-5


def failing(model: weights.Model) -> set[tuple[str, str]]:
    """The precisions and frames in which a model is beyond its gate; the reference of each frame is computed once."""
    references: dict[tuple[int, ...], np.ndarray[Any, Any]] = {}
    reference = verification._reference

    def kept(model: weights.Model, frames: np.ndarray[Any, Any], options: Options) -> np.ndarray[Any, Any]:
        if frames.shape not in references:
            references[frames.shape] = reference(model, frames, options)
        return references[frames.shape]

    failed = set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verification, "_reference", kept)
        for precision, frames in verification.GATES:
            options = Options(precision, frames)  # type: ignore[arg-type]
            content = onnx_bytes(model, options)
            check_graph(content)
            agreement = compare(content, model, options)
            assert agreement is not None
            if not agreement.passed:
                failed.add((precision, frames))
    return failed


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_passes_its_gates(name: str, tmp_path: Path) -> None:
    assert not failing(model_called(name, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("name", weights.bundled())
def test_bundled_models_pass_their_gates(name: str) -> None:
    assert not failing(weights.load(name))


@pytest.mark.slow
def test_models_of_others_pass_their_gates(shared_data: Path) -> None:
    # In float16 its maps of more than a hundred, which add up to nearly nothing, leave 16% of the values off.
    not_in_half = {"leftthomas_srgan_x2_b5.pth": {("fp16", "uint8")}}
    files = [path for kind in ("*sr*.pt*", "*.bin") for path in (shared_data / "weights").glob(kind)]
    assert not_in_half.keys() <= {path.name for path in files}
    assert {path.name: failed for path in files if (failed := failing(weights.load(path)))} == not_in_half


def test_names_say_where_in_the_network_a_node_is(model: weights.Model) -> None:
    nodes = {node.name: node.op_type for node in graph_of(model).graph.node}
    wanted = {
        "head.0": "Conv",
        "body.1.prelu": "PRelu",
        "body.1.add": "Add",
        "skip.0": "Conv",
        "output.1": "DepthToSpace",
    }
    assert wanted.items() <= nodes.items()


def test_the_network_is_in_half_and_its_ends_in_float32(model: weights.Model) -> None:
    graph = graph_of(model).graph
    casts = [node.name for node in graph.node if node.op_type == "Cast"]
    assert casts == ["frames.float", "frames.scaled.float16", "result.float32", OUTPUT]
    halves = {constant.name for constant in graph.initializer if constant.data_type == TensorProto.FLOAT16}
    others = {constant.name.split(".")[0] for constant in graph.initializer} - {"frames", "pixels"}
    assert {name.split(".")[0] for name in halves} == others


def test_an_added_enlargement_is_never_in_half(tmp_path: Path) -> None:
    graph = graph_of(model_called("compact", tmp_path)).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in _inferred(graph)}
    (resize,) = (node for node in graph.node if node.op_type == "Resize")
    assert kinds[resize.output[0]] == kinds[resize.input[0]] == TensorProto.FLOAT


def _inferred(graph: onnx.GraphProto) -> Any:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    return onnx.shape_inference.infer_shapes(model, strict_mode=True).graph.value_info


def test_weights_beyond_half_are_refused(tmp_path: Path) -> None:
    model = model_called("batch", tmp_path)
    model.network.output.bias.data[0] = 7e4  # type: ignore[union-attr,operator]
    onnx_bytes(model, Options("fp32"))
    with pytest.raises(UsageError, match=r"within float16, 65504 at most, got more in output\.0\.bias; take fp32"):
        onnx_bytes(model)


def test_carried_rounding_keeps_the_sum_of_a_kernel() -> None:
    weight = np.random.default_rng(0).normal(0, 0.1, (4, 3, 9, 9)).astype(np.float32)
    weight[:, :, :2] = 0
    carried, plain = _carried(weight, np.dtype(np.float16)), weight.astype(np.float16)

    def off(rounded: np.ndarray[Any, Any]) -> float:
        return float(np.abs(rounded.astype(np.float64).sum((2, 3)) - weight.astype(np.float64).sum((2, 3))).max())

    assert off(carried) <= np.spacing(np.float16(np.abs(weight).max())) / 2 < off(plain)
    assert np.abs(carried - weight).max() <= np.spacing(np.float16(np.abs(weight).max()))
    assert not carried[:, :, :2].any()


def test_a_shared_slope_as_leaky_relu_is_the_same_function(model: weights.Model, tmp_path: Path) -> None:
    options = Options("fp32", leaky_relu=True)
    kinds = {node.op_type for node in graph_of(model, precision="fp32", leaky_relu=True).graph.node}
    assert "LeakyRelu" in kinds
    assert "PRelu" not in kinds
    frames = np.random.default_rng(0).integers(0, 256, (1, 9, 8, 3), dtype=np.uint8)
    assert np.array_equal(
        run_file(onnx_bytes(model, options), frames), run_file(onnx_bytes(model, Options("fp32")), frames)
    )
    channels = model_called("separable, a slope a channel", tmp_path)
    assert "LeakyRelu" not in {node.op_type for node in graph_of(channels, leaky_relu=True).graph.node}


def test_a_layer_without_a_counterpart_is_refused(model: weights.Model) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.Sigmoid()).requires_grad_(False)
    with pytest.raises(UsageError, match=r"can be exported, got .*Sigmoid|can be exported, got .*target=1"):
        onnx_bytes(replace(model, network=network))


def test_metadata(model: weights.Model, tmp_path: Path) -> None:
    info = replace(model.info, name="/home/someone/nice", recipe={"licence": "CC0-1.0"})
    found = {entry.key: entry.value for entry in graph_of(replace(model, info=info)).metadata_props}
    assert found == {
        "format": "1",
        "frames": "uint8 NHWC RGB",
        "licence": "CC0-1.0",
        "model": "nice",
        "precision": "fp16",
        "radius": str(receptive_radius(model.network)),
        "scale": "4",
        "weights": model.info.digest,
    }
    assert list(found) == sorted(found)
    whole = graph_of(model_called("InstanceNorm", tmp_path), frames="float")
    found = {entry.key: entry.value for entry in whole.metadata_props}
    assert found["radius"] == "none"
    assert "no tile" in found["radius_reason"]
    assert found["frames"] == "float32 NCHW RGB in [0, 1]"
    assert {entry.key: entry.value for entry in graph_of(weights.load("srresnet_x4_small")).metadata_props}[
        "licence"
    ] == "Apache-2.0"


def test_the_same_bytes_in_every_folder_and_process(tiny: Path, tmp_path: Path) -> None:
    code = (
        "import hashlib, sys\nfrom srgan_fast.export import onnx_bytes\nfrom srgan_fast.weights import load\n"
        "print(hashlib.sha256(onnx_bytes(load(sys.argv[1]))).hexdigest())"
    )
    folder = tmp_path / "there"
    folder.mkdir()
    (folder / "tiny.safetensors").write_bytes(tiny.read_bytes())
    environment = {**os.environ, "PYTHONHASHSEED": "1", "HOSTNAME": "there", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, "tiny.safetensors"]
    other = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=True
    )
    content = onnx_bytes(weights.load(tiny))
    assert other.stdout.strip() == hashlib.sha256(content).hexdigest()
    assert str(tmp_path).encode() not in content


@pytest.mark.parametrize(("name", "by"), [("upsample.0.prelu.weight", 0.1), ("head.0.bias", 0.05), ("pixels.gain", 50)])
def test_a_wrong_constant_is_found_by_running_it(name: str, by: float, model: weights.Model) -> None:
    for options in (Options("fp32", "float"), Options("fp16", "uint8")):
        graph = graph_of(model, precision=options.precision, frames=options.frames)
        (constant,) = (constant for constant in graph.graph.initializer if constant.name == name)
        values = numpy_helper.to_array(constant)
        constant.CopyFrom(numpy_helper.from_array((values + by).astype(values.dtype), name))
        with pytest.raises(ParityError, match="expected onnxruntime to give what eager does, got FAIL: max error"):
            verify(graph.SerializeToString(), model, options)


# --- the command ------------------------------------------------------------------------------------------------


def test_command(run: Run, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "tiny.onnx"
    code, said, _ = run("export", tiny, out, "--precision", "fp32", "--frames", "float", "--leaky-relu")
    assert code == 0
    assert out.read_bytes() == onnx_bytes(weights.load(tiny), Options("fp32", "float", leaky_relu=True))
    assert "frames of 1x9x14, 2x13x7, 3x5x16: pass: max error" in said
    assert f"sha256 {hashlib.sha256(out.read_bytes()).hexdigest()[:16]}" in said


def test_command_refuses_before_it_works(run: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "same.onnx").write_bytes(b"weights")
    for model, out, options, code, said in (
        (tiny, "a.pth", (), 2, "expected an output called *.onnx, got a.pth"),
        (tiny, "missing/a.onnx", (), 4, "in a folder that can be written"),
        (tiny, "folder.onnx", (), 4, "expected OUT to name a file"),
        (tmp_path / "same.onnx", "same.onnx", (), 2, "the model and the output are the same"),
        (tiny, "a.onnx", ("--precision", "bf16"), 2, "expected a precision of fp32 or fp16, got 'bf16'"),
        (tiny, "a.onnx", ("--frames", "rgb"), 2, "expected frames of uint8 or float, got 'rgb'"),
        ("nothing", "a.onnx", (), 2, "expected a weights file or one of the bundled models"),
    ):
        outcome = run("export", model, tmp_path / out, *options)
        assert (outcome[0], said in outcome[2]) == (code, True), outcome
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert run("export", tiny, tmp_path / "a.onnx")[0] == 4
    assert (tmp_path / "same.onnx").read_bytes() == b"weights"
    assert {path.name for path in tmp_path.iterdir()} == {"folder.onnx", "same.onnx"}


def test_nothing_is_written_that_does_not_agree(
    run: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(verification.GATES, ("fp16", "uint8"), verification.Gate(0))
    code, _, err = run("export", tiny, tmp_path / "tiny.onnx")
    assert code == ParityError.exit_code
    assert "got FAIL: max error 1 level (allowed 0)" in err
    assert "--precision fp32 may hold" in err
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_what_was_there(
    run: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "tiny.onnx"
    out.write_bytes(b"before")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    code, _, err = run("export", tiny, out)
    assert (code, f"cannot write {out}: No space left" in err) == (4, True)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


def test_without_onnxruntime_it_says_what_was_not_run(
    run: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, said, _ = run("export", tiny, tmp_path / "tiny.onnx")
    assert code == 0
    assert "not run: the package onnxruntime is not installed; pip install 'srgan-fast[onnx]'" in said
    check_graph((tmp_path / "tiny.onnx").read_bytes())


def test_without_onnx_it_says_how_to_get_it(
    run: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    code, _, err = run("export", tiny, tmp_path / "tiny.onnx")
    assert (code, "the package onnx is not installed; pip install 'srgan-fast[onnx]'" in err) == (3, True)
    assert not list(tmp_path.iterdir())


def test_threads_export_while_others_run_networks() -> None:
    """To trace, fx replaces what every module of the process does when it is called."""
    model = weights.load("srresnet_x4_small")
    want = onnx_bytes(model)
    frame = torch.rand(1, 3, 8, 8)
    with torch.inference_mode():
        picture = model.network(frame)
    over = threading.Event()

    def run() -> bool:
        same = True
        with torch.inference_mode():
            while not over.is_set():
                same &= torch.equal(model.network(frame), picture)
        return same

    with ThreadPoolExecutor(3) as pool:
        running = pool.submit(run)
        exports = [pool.submit(onnx_bytes, model) for _ in range(6)]
        outcomes = [export.exception() for export in exports]
        over.set()
        assert outcomes == [None] * 6
        assert {export.result() == want for export in exports} == {True}
        assert running.result()
