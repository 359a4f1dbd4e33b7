"""Weights: what is saved comes back, what is damaged is refused, what others trained is recognised."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layouts import DIALECTS, foreign, nameless
from PIL import Image

from srgan_fast import weights
from srgan_fast.community import bounds
from srgan_fast.errors import OutputError, SRGANFastError, UsageError, WeightsError
from srgan_fast.evaluate.metrics import score
from srgan_fast.model import (
    CompactConfig,
    Generator,
    GeneratorConfig,
    MSRResNet,
    MSRResNetConfig,
    SRVGGNetCompact,
)
from srgan_fast.rewrite import folded

TINY: dict[str, Any] = {"blocks": 2, "width": 8}


def generator(**config: Any) -> Generator:
    torch.manual_seed(1)
    return Generator(GeneratorConfig(**{**TINY, **config})).eval()


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in DIALECTS),
    ("leftthomas", {"skip_end": "norm"}),
    ("leftthomas", {"scale": 2}),
    ("leftthomas", {"blocks": 15}),
    ("Swift-SRGAN", {"scale": 2}),
    ("sgrvinod", {"scale": 8}),
    ("Fast-SRGAN", {"norm": "batch"}),
]


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
@pytest.mark.parametrize(("name", "change"), VARIANTS)
def test_layouts_of_the_family_are_recognised(tmp_path: Path, name: str, change: dict[str, Any], kind: str) -> None:
    network = generator(**{**DIALECTS[name][0], **change})
    tensors = foreign(name, network)
    path = tmp_path / f"foreign.{kind}"
    if kind == "pth":
        torch.save({"epoch": 3, "state_dict": tensors}, path)
    else:
        safetensors.torch.save_file(tensors, path)  # sorts the names
    model = weights.load(path)
    assert name in model.info.source
    assert name in model.info.assumptions[0]
    lr = torch.rand(1, 3, 9, 7)
    with torch.inference_mode():
        assert torch.equal(model.network(lr), network(lr))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: {"n_averaged": torch.tensor(5), **{f"module.{key}": value for key, value in t.items()}},
        lambda t: {"params": {}, "params_ema": t},
        lambda t: {"state_dict": {"step_counter": torch.zeros(1), **{f"generator.{k}": v for k, v in t.items()},
                                  "discriminator.0.weight": torch.ones(2, 2)}},
        lambda t: {"model": {"state_dict": {f"module._orig_mod.{key}": value for key, value in t.items()}}},
        lambda t: {"step": torch.tensor(7), "generator": t, "discriminator": {"a.weight": torch.ones(1)}},
    ],
)  # fmt: skip
def test_what_scripts_wrap_around_a_generator_is_removed(tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    network = generator(**DIALECTS["goldhuang"][0])
    torch.save(wrap(foreign("goldhuang", network)), tmp_path / "wrapped.pth")
    model = weights.load(tmp_path / "wrapped.pth")
    for key, value in network.state_dict().items():
        assert torch.equal(model.network.state_dict()[key], value)


def test_a_dictionary_that_holds_itself(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["model"] = content
    torch.save(content, tmp_path / "loop.pth")
    with pytest.raises(WeightsError, match="state_dict"):
        weights.load(tmp_path / "loop.pth")


def test_what_a_project_leaves_implicit_is_written_out(tmp_path: Path) -> None:
    network = generator(prelu="channel", bias=True)
    tensors = {f"m.{key}": value for key, value in network.state_dict().items() if key != "skip.0.bias"}
    tensors["m.body.1.prelu.weight"] = torch.tensor([0.5])
    torch.save(tensors, tmp_path / "a.pth")
    got = weights.load(tmp_path / "a.pth").network.state_dict()
    assert torch.equal(got["skip.0.bias"], torch.zeros(8))
    assert torch.equal(got["body.1.prelu.weight"], torch.full((8,), 0.5))


def test_a_file_with_strange_names_is_told_by_its_tensors(tmp_path: Path) -> None:
    network = generator(blocks=11)  # sorted names put layer 10 before layer 2
    tensors = nameless(network.state_dict())
    safetensors.torch.save_file(tensors, tmp_path / "strange.safetensors")
    model = weights.load(tmp_path / "strange.safetensors")
    assert model.info.config["blocks"] == 11
    assert model.info.assumptions
    for key, value in network.state_dict().items():
        if "num_batches" not in key:
            assert torch.equal(model.network.state_dict()[key], value)


@pytest.mark.parametrize("container", ["params", "params_ema"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_compact_is_recognised(tmp_path: Path, scale: int, container: str) -> None:
    compact = SRVGGNetCompact(CompactConfig(blocks=5, width=8, scale=scale)).eval()
    count = len(compact.body)
    tensors = {key.replace("output", f"body.{count}"): value for key, value in compact.state_dict().items()}
    torch.save({container: tensors}, tmp_path / "compact.pth")
    safetensors.torch.save_file(tensors, tmp_path / "compact.safetensors")
    lr = torch.rand(1, 3, 6, 5)
    for name in ("compact.pth", "compact.safetensors"):
        with torch.inference_mode():
            assert torch.equal(weights.load(tmp_path / name).network(lr), compact(lr))


@pytest.mark.parametrize("project", ["BasicSR", "mmagic"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_msrresnet_is_recognised(tmp_path: Path, scale: int, project: str) -> None:
    config = MSRResNetConfig(blocks=2, width=8, scale=scale, upsample_activation=project == "BasicSR")
    plain = MSRResNet(config).eval()
    for value in plain.parameters():
        torch.nn.init.normal_(value, std=0.2)
    names = {"head": "conv_first", "refine": "conv_hr", "output": "conv_last"}
    for stage in (0, 1):
        names[f"upsample.{stage}"] = f"upconv{stage + 1}" if project == "BasicSR" else f"upsample{stage + 1}."
    tensors = {}
    for key, value in plain.state_dict().items():
        prefix, _, leaf = key.rpartition(".")
        name = names.get(prefix, prefix)
        if project == "mmagic":
            name = name.replace("body", "trunk_net") + ("upsample_conv" if name.endswith(".") else "")
            name = f"generator.{name}"
        tensors[f"{name}.{leaf}"] = value
    torch.save({"params" if project == "BasicSR" else "state_dict": tensors}, tmp_path / "plain.pth")
    lr = torch.rand(1, 3, 6, 5)
    model = weights.load(tmp_path / "plain.pth")
    assert project in model.info.assumptions[0]
    with torch.inference_mode():
        got = model.network(lr)
        assert torch.equal(got, plain(lr))
        assert got.shape[-2:] == (6 * scale, 5 * scale)
    weights.convert(tmp_path / "plain.pth", tmp_path / "ours.safetensors")
    with torch.inference_mode():
        assert torch.equal(weights.load(tmp_path / "ours.safetensors").network(lr), got)


def test_ncnn_files_are_read(tmp_path: Path) -> None:
    compact = SRVGGNetCompact(CompactConfig(blocks=1, width=5, scale=2)).eval().half().float()
    lines, data = [], b""
    for module in [*compact.body, compact.output]:
        if isinstance(module, torch.nn.Conv2d):
            weight = module.weight.detach().numpy().astype("<f2").tobytes()
            data += (0x01306B47).to_bytes(4, "little") + weight + b"\0" * (-len(weight) % 4)
            data += module.bias.detach().numpy().astype("<f4").tobytes()  # type: ignore[union-attr]
            lines.append(f"Convolution c 1 1 a b 0={module.out_channels} 1=3 6={module.weight.numel()}")
        else:
            data += module.weight.detach().numpy().astype("<f4").tobytes()  # type: ignore[operator,union-attr]
            lines.append("PReLU p 1 1 a b 0=5")
    (tmp_path / "net.param").write_text("\n".join(["7767517", "9 9", "Input i 0 1 a", *lines]))
    (tmp_path / "net.bin").write_bytes(data)
    lr = torch.rand(1, 3, 6, 5)
    with torch.inference_mode():
        assert torch.equal(weights.load(tmp_path / "net.bin").network(lr), compact(lr))
    (tmp_path / "net.bin").write_bytes(data[:-4])
    with pytest.raises(WeightsError, match="ncnn"):
        weights.load(tmp_path / "net.bin")


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    network = generator()
    saved = weights.save(tmp_path / "a.safetensors", network, name="a", recipe={"steps": 3})
    model = weights.load(tmp_path / "a.safetensors")
    assert model.info == saved
    assert model.info.recipe == {"steps": 3}
    assert not model.network.training
    for key, value in network.state_dict().items():
        assert torch.equal(model.network.state_dict()[key], value)
    again = weights.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert again.digest == saved.digest
    assert sorted(os.listdir(tmp_path)) == ["a.safetensors", "b.safetensors"]


def test_bundled_weights_load() -> None:
    assert "srresnet_x4" in weights.bundled()
    assert weights.load("srresnet_x4").info.config["blocks"] == 16


def test_a_name_that_is_nothing() -> None:
    with pytest.raises(UsageError, match="srresnet_x4"):
        weights.load("no_such_model")


def test_weights_of_another_network(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(3, 4).state_dict(), tmp_path / "linear.pth")
    with pytest.raises(WeightsError, match="Swift-SRGAN"):
        weights.convert(tmp_path / "linear.pth", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("evil-was-run",)


def test_code_in_a_pickle_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"model": Evil()}))
    torch.save({"model": Evil()}, tmp_path / "evil2.pth")
    for name in ("evil.pth", "evil2.pth"):
        with pytest.raises(WeightsError):
            weights.load(tmp_path / name)
    assert not (tmp_path / "evil-was-run").exists()


def test_numbers_that_a_file_claims_but_does_not_hold(tmp_path: Path) -> None:
    huge = {f"head.0.{leaf}": torch.zeros(1).expand(10**6, 3, 9, 9) for leaf in ("weight", "bias")}
    torch.save(huge, tmp_path / "huge.pth")
    with pytest.raises(WeightsError, match="claims more"):
        weights.load(tmp_path / "huge.pth")
    header = b'{"a":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4000000000000]}}'
    (tmp_path / "huge.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"1234")
    (tmp_path / "header.safetensors").write_bytes(b"\xff" * 7 + b"\x7f" + header)
    for name in ("huge.safetensors", "header.safetensors"):
        with pytest.raises(WeightsError, match="cannot be read"):
            weights.load(tmp_path / name)


def test_numbers_that_are_not_numbers(tmp_path: Path) -> None:
    tensors = generator().state_dict()
    tensors["body.1.norm2.weight"][3] = float("nan")
    torch.save(tensors, tmp_path / "nan.pth")
    with pytest.raises(WeightsError, match=r"body\.1\.norm2\.weight"):
        weights.load(tmp_path / "nan.pth")


@pytest.mark.parametrize(
    "change",
    [
        {"scale": 2}, {"scale": None}, {"architecture": ["srresnet"]}, {"architecture": "other"}, {"config": []},
        {"config": {"blocks": 10**9}}, {"config": {"blocks": "many"}}, {"config": {"width": 10**12, "blocks": 2}},
        {"output_range": [[0], "a"]}, {"output_range": [0.0, 1.0, 2.0]}, {"digest": "0"}, {"extra": 1},
    ],
)  # fmt: skip
@pytest.mark.parametrize("rechecked", [False, True])
def test_metadata_that_was_changed_is_refused(tmp_path: Path, change: dict[str, Any], rechecked: bool) -> None:
    path = tmp_path / "a.safetensors"
    weights.save(path, generator(), name="a", recipe={})
    with safetensors.safe_open(path, framework="pt") as stored:
        metadata = stored.metadata()
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
    metadata["srgan_fast"] = json.dumps(json.loads(metadata["srgan_fast"]) | change)
    if rechecked:
        metadata["srgan_fast_sha256"] = hashlib.sha256(metadata["srgan_fast"].encode()).hexdigest()
    safetensors.torch.save_file(tensors, path, metadata)
    with pytest.raises(WeightsError) as caught:
        weights.load(path)
    assert "\n" not in str(caught.value)


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a.safetensors").write_bytes(b"before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        weights.save(tmp_path / "a.safetensors", generator(), name="a", recipe={})
    assert os.listdir(tmp_path) == ["a.safetensors"]
    assert (tmp_path / "a.safetensors").read_bytes() == b"before"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        weights.save(tmp_path / "no" / "a.safetensors", generator(), name="a", recipe={})


def damaged(data: bytes, draw: Any) -> bytes:
    kind = draw(st.sampled_from(["cut", "flip", "noise", "empty"]))
    if kind == "cut":
        return data[: draw(st.integers(0, len(data) - 1))]
    if kind == "flip":
        at = draw(st.integers(0, len(data) - 1))
        return data[:at] + bytes([data[at] ^ draw(st.integers(1, 255))]) + data[at + 1 :]
    return draw(st.binary(max_size=300)) if kind == "noise" else b""


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_are_one_line(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    path = tmp_path / f"good{suffix}"
    network = generator(blocks=1, width=2)
    if suffix == ".pth":
        torch.save(network.state_dict(), path)
    else:
        weights.save(path, network, name="good", recipe={})
    bad = tmp_path / f"bad{suffix}"
    bad.write_bytes(damaged(path.read_bytes(), data.draw))
    try:
        model = weights.load(bad)
    except SRGANFastError as error:
        assert "\n" not in str(error)  # noqa: PT017  (reading may also succeed)
    else:
        # A flipped bit may sit in padding or in the pickle's unused parts; ours carry digests and cannot differ.
        if suffix == ".safetensors":
            assert model.info == weights.load(path).info


# Name, PSNR and SSIM on Set5 (y601, the LR images that MATLAB wrote, fp32).
REAL = [
    ("leftthomas_srgan_x4_b5.pth", 30.657, 0.8642),
    ("kodeking_srgan_x4_b5.pth", 30.190, 0.8584),
    ("hasnainraz_fastsrgan_x4_b8.pt", 29.386, 0.8450),
    ("realesr-animevideov3-x4.bin", 28.250, 0.8271),
]


@pytest.mark.parametrize(("name", "psnr_db", "ssim"), REAL)
def test_real_checkpoints_score_what_they_should(shared_data: Path, name: str, psnr_db: float, ssim: float) -> None:
    model = weights.load(shared_data / "weights" / name)
    network = folded(model.network)
    (low, high), (base, top) = bounds(model.info.input_range), bounds(model.info.output_range)
    scores = []
    for path in sorted((shared_data / "Set5").glob("*.png")):
        (small,) = (shared_data / "Set5_LRx4_matlab").glob(f"{path.stem}*.png")
        hr, lr = (torch.from_numpy(np.array(Image.open(p).convert("RGB"))).permute(2, 0, 1) for p in (path, small))
        with torch.inference_mode():
            out = (network((lr[None] / 255) * (high - low) + low) - base) / (top - base)
        scores.append(score(hr, (out.clamp(0, 1) * 255 + 0.5).floor().to(torch.uint8)[0], "y601", 4))
    assert np.mean([each.psnr_db for each in scores]) == pytest.approx(psnr_db, abs=0.01)
    assert np.mean([each.ssim for each in scores]) == pytest.approx(ssim, abs=0.0005)


@pytest.mark.parametrize("name", [name for name, *_ in REAL[:3]] + ["leftthomas_srgan_x2_b5.pth"])
def test_real_checkpoints_are_recognised_without_their_names(shared_data: Path, tmp_path: Path, name: str) -> None:
    """The order of the tensors gives the network, and trying out the usual colour ranges gives the right one."""
    named = weights.load(shared_data / "weights" / name)
    tensors = torch.load(shared_data / "weights" / name, weights_only=True, map_location="cpu")
    torch.save(nameless(tensors), tmp_path / "renamed.pth")
    info = weights.load(tmp_path / "renamed.pth").info
    assert (info.config, info.input_range, info.output_range) == (
        named.info.config,
        named.info.input_range,
        named.info.output_range,
    )
