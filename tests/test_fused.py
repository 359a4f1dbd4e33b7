"""The fused backend: the program of a network, its memory, its self-check, and who owns what.

Without a GPU the ops run their references here, so all but the kernels themselves is what runs on one; the kernels go
through the interpreter in test_kernels.py and test_network.py.
"""

from __future__ import annotations

import gc
import math
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import model_of

from srgan_fast import Upscaler, backends, graph, kernels, weights
from srgan_fast.backends import BACKENDS, BackendEntry, fused, program, select
from srgan_fast.backends.eager import EagerBackend
from srgan_fast.backends.fused import FusedBackend
from srgan_fast.backends.probe import Ok
from srgan_fast.bench.parts import host_waits
from srgan_fast.errors import BackendUnavailable, MemoryBudgetError, UsageError
from srgan_fast.kernels import launch, parity
from srgan_fast.model import CompactConfig, Generator, GeneratorConfig, MSRResNet, MSRResNetConfig, SRVGGNetCompact
from srgan_fast.rewrite import folded, without_last_shuffle
from srgan_fast.tiling import Footprint, plan, tiles

NETWORKS: dict[str, Callable[[], torch.nn.Module]] = {
    "paper's layout": lambda: Generator(GeneratorConfig(blocks=2, width=16)),
    "no blocks": lambda: Generator(GeneratorConfig(blocks=0, width=16)),
    "x2, channel slopes, tanh": lambda: Generator(
        GeneratorConfig(blocks=1, width=24, scale=2, prelu="channel", activation="tanh")
    ),
    "x8, PReLU after the skip": lambda: Generator(
        GeneratorConfig(blocks=1, width=16, scale=8, skip_end="prelu", bias=True)
    ),
    "5x5 ends, no normalisation": lambda: Generator(GeneratorConfig(blocks=1, width=16, kernel=5, norm="none")),
    "compact": lambda: SRVGGNetCompact(CompactConfig(blocks=3, width=16)),
    "compact x2, leaky": lambda: SRVGGNetCompact(CompactConfig(blocks=2, width=20, scale=2, activation="leakyrelu")),
    "compact, relu": lambda: SRVGGNetCompact(CompactConfig(blocks=1, width=16, activation="relu")),
}


@pytest.fixture(params=NETWORKS, ids=str)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> weights.Model:
    return model_of(NETWORKS[request.param](), tmp_path)


@pytest.fixture
def tiny_model(tmp_path: Path) -> weights.Model:
    return model_of(NETWORKS["paper's layout"](), tmp_path)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the backend start without a GPU, with eager as the only other; the ops then run their references."""
    monkeypatch.setattr(fused, "why_not_triton", lambda device: None)
    # Not one by one: undone, they would come back at the end of the order.
    monkeypatch.setattr(backends, "BACKENDS", {name: BACKENDS[name] for name in ("fused", "eager")})


def frames(n: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    values = np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), dtype=np.uint8)
    return torch.from_numpy(values)


def result_of(backend: Any, lr: torch.Tensor) -> torch.Tensor:
    n, height, width, _ = lr.shape
    scale = backend.info.scale
    out = torch.empty(n, height * scale, width * scale, 3, dtype=lr.dtype)
    backend.run(lr, out, height)
    return out


# --- the program --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
def test_the_whole_network_equals_eager(model: weights.Model, dtype: torch.dtype) -> None:
    backend = FusedBackend(model, "cpu", "fp32")
    assert all(outcome.passed for outcome in backend.check)
    lr = frames(2, 11, 7)
    if dtype == torch.uint16:
        lr = (lr.to(torch.int32) * 257).to(dtype)
    elif dtype.is_floating_point:
        lr = lr / 255
    got, want = result_of(backend, lr).double(), result_of(EagerBackend(model, "cpu", "fp32"), lr).double()
    top = 1.0 if dtype.is_floating_point else torch.iinfo(dtype).max
    # Rounding: a level of the pixels for integers, float32's own otherwise.
    assert (got - want).abs().max() <= max(1.0 if top > 1 else 0, 1e-5)
    assert ((got - want).abs() / top).mean() < 1e-5


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_element_is_written_before_it_is_read(model: weights.Model, precision: str) -> None:
    """Each buffer is poisoned just before the step that fills it: what a step leaves out shows as NaN downstream."""
    dtype = {"fp32": torch.float32, "fp16": torch.float16}[precision]
    network = without_last_shuffle(folded(model.network))
    steps = program.walk(network, model.info, dtype, torch.device("cpu"))
    n, height, width = 1, 6, 9
    layout = program.place(steps, n, height, width, torch.float32)
    memory = torch.full((layout.size_bytes,), 0xFF, dtype=torch.uint8)  # NaN in every float format
    calls, views = program.bind(steps, layout, memory, n, height, width, torch.float32)
    views["frames"].copy_(frames(n, height, width) / 255)
    for call in calls:
        if not call.in_place:
            call.out.fill_(math.nan)
        call.work()
        assert torch.isfinite(call.out).all(), call.op


@settings(max_examples=30, deadline=None)
@given(name=st.sampled_from(sorted(NETWORKS)), n=st.integers(1, 3), height=st.integers(1, 40), width=st.integers(1, 40))
def test_buffers_that_live_together_never_overlap(name: str, n: int, height: int, width: int) -> None:
    network = NETWORKS[name]().eval()
    info = _info(network)
    steps = program.walk(without_last_shuffle(folded(network)), info, torch.float16, torch.device("cpu"))
    layout = program.place(steps, n, height, width, torch.uint8)
    spans = {
        name: (offset, offset + steps.buffers[name].size_bytes(n, height, width, torch.uint8))
        for name, offset in layout.offsets.items()
    }
    assert max(end for _, end in spans.values()) == layout.size_bytes
    uses = {name: [i for i, s in enumerate(steps.steps) if name in (*s.buffers.values(), s.out)] for name in spans}
    uses["frames"].append(-1)
    uses["pixels"].append(len(steps.steps))
    for a in spans:
        assert spans[a][0] % 256 == 0
        for b in spans:
            together = min(uses[a]) <= max(uses[b]) and min(uses[b]) <= max(uses[a])
            if a < b and together:
                assert spans[a][1] <= spans[b][0] or spans[b][1] <= spans[a][0], (a, b)
    if isinstance(network, Generator):  # the last maps, the largest by far, take the place of the trunk
        assert layout.size_bytes < sum(end - start for start, end in spans.values())


def _info(network: Any) -> weights.ModelInfo:
    architecture = "srresnet" if isinstance(network, Generator) else "compact"
    return weights.ModelInfo("n", architecture, {}, network.scale, (0.0, 1.0), (-1.0, 1.0), "")


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize(
    ("network", "said"),
    [
        (lambda: Generator(GeneratorConfig(blocks=1, width=8, norm="instance")), "whole frame"),
        (lambda: Generator(GeneratorConfig(blocks=1, width=8, separable=True)), "separable"),
        (lambda: MSRResNet(MSRResNetConfig(blocks=1, width=8)), "msrresnet"),
    ],
)
def test_what_has_no_kernels_is_refused_with_the_reason(
    network: Callable[[], torch.nn.Module], said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = model_of(network(), tmp_path)
    with pytest.raises(BackendUnavailable, match=said):
        select("fused", model, "cpu", "fp32")
    assert select("auto", model, "cpu", "fp32").name == "eager"


def test_without_a_gpu_it_says_what_is_missing(tiny_model: weights.Model) -> None:
    if torch.cuda.is_available() or kernels.interpreting():
        pytest.skip("the kernels run here")
    with pytest.raises(BackendUnavailable, match=r"NVIDIA GPU|triton is not installed"):
        select("fused", tiny_model, "cpu", "auto")
    with pytest.raises(BackendUnavailable, match="fused"):
        FusedBackend(tiny_model, "cpu", "auto")


@pytest.mark.usefixtures("on_cpu")
def test_a_precision_that_is_none(tiny_model: weights.Model) -> None:
    with pytest.raises(UsageError, match="precision"):
        FusedBackend(tiny_model, "cpu", "fp8")


# --- memory and ownership -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("on_cpu")
def test_a_result_is_never_a_view_of_the_backends_memory(tiny_model: weights.Model) -> None:
    backend = FusedBackend(tiny_model, "cpu", "fp32")
    first, second = frames(1, 8, 8, seed=1), frames(1, 8, 8, seed=2)
    one = result_of(backend, first)
    kept = one.clone()
    two = result_of(backend, second)
    assert torch.equal(one, kept)
    assert not torch.equal(one, two)
    own = backend._memory.untyped_storage().data_ptr()
    assert one.untyped_storage().data_ptr() != own


@pytest.mark.usefixtures("on_cpu")
def test_sizes_share_memory_and_the_oldest_graph_goes(
    tiny_model: weights.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "_MOST_GRAPHS", 3)
    backend = FusedBackend(tiny_model, "cpu", "fp32")
    plain = EagerBackend(tiny_model, "cpu", "fp32")
    large = frames(1, 30, 30)
    result_of(backend, large)
    held = backend.reusable_bytes
    for size in (4, 5, 6, 7, 30, 4, 31, 4):
        lr = frames(1, size, size)
        difference = result_of(backend, lr).int() - result_of(plain, lr).int()
        assert difference.abs().max() <= 1
        assert len(backend._ready) <= 3
        assert backend.reusable_bytes == held or size == 31 or backend.reusable_bytes > held


@pytest.mark.usefixtures("on_cpu")
def test_a_replay_keeps_what_its_graph_has_only_the_address_of(
    tiny_model: weights.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as the colours' gain, which is made for each dtype of frames and belongs to no one else."""

    class Graph:
        def replay(self) -> None:
            pass

    gains: list[weakref.ref[torch.Tensor]] = []

    def capture(work: graph.Work, *_: object) -> graph.Work:
        work()
        return graph.Replay(Graph(), work)

    bind = program.bind

    def bound(*arguments: Any) -> Any:
        calls, views = bind(*arguments)
        heads: list[Any] = [call.work for call in calls if call.op == "head"]
        gains.extend(weakref.ref(head.keywords["gain"]) for head in heads)
        return calls, views

    monkeypatch.setattr(fused, "bind", bound)
    backend = FusedBackend(tiny_model, "cpu", "fp32")
    monkeypatch.setattr(graph, "capture", capture)
    gains.clear()
    backend.run(torch.zeros(1, 5, 6, 3), torch.empty(1, 20, 24, 3), band=5)
    gc.collect()
    assert [gain() is None for gain in gains] == [False]
    backend._ready.clear()
    gc.collect()
    assert [gain() is None for gain in gains] == [True]


@pytest.mark.usefixtures("on_cpu")
def test_threads_get_their_own_results(tiny_model: weights.Model) -> None:
    backend = FusedBackend(tiny_model, "cpu", "fp32")
    inputs = [[frames(1, 6, 7 + k, seed=100 * k + i) for i in range(20)] for k in range(2)]
    wants = [[result_of(backend, lr) for lr in mine] for mine in inputs]
    gots: list[list[torch.Tensor]] = [[], []]

    def work(k: int) -> None:
        gots[k] = [result_of(backend, lr) for lr in inputs[k]]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mine, want in zip(gots, wants, strict=True):
        assert len(mine) == 20
        assert all(torch.equal(a, b) for a, b in zip(mine, want, strict=True))


@pytest.mark.usefixtures("on_cpu")
def test_tiles_and_batches_equal_whole_frames(tiny_model: weights.Model) -> None:
    lr = frames(3, 40, 37)
    whole = Upscaler(tiny_model, backend="fused", device="cpu", precision="fp32")
    assert whole.plan(40, 37, count=3).frames == 3
    want = whole(lr)
    assert torch.equal(want[1], whole(lr[1]))
    tiled = Upscaler(tiny_model, backend="fused", device="cpu", precision="fp32", tile=13)
    assert (tiled(lr).int() - want.int()).abs().max() <= 1
    assert (tiled(lr) != want).float().mean() < 1e-3


def test_frames_beyond_32_bit_offsets_are_tiled() -> None:
    cost = Footprint(trunk_bytes=3000, kept_bytes=0, tail_bytes=0, radius=40, tail_radius=0, pixels=2_000_000)
    assert plan(cost, 1000, 1999, tile=None, budget_bytes=None).tile is None
    cut = plan(cost, 2160, 3840, tile=None, budget_bytes=None)
    assert cut.tile is not None
    for tile in tiles(2160, 3840, cut.tile, 40):
        top, bottom, left, right = tile.read
        assert (bottom - top) * (right - left) <= 2_000_000
    blind = Footprint(trunk_bytes=3000, kept_bytes=0, tail_bytes=0, radius=None, tail_radius=0, pixels=2_000_000)
    with pytest.raises(BackendUnavailable, match="cannot be tiled"):
        plan(blind, 2160, 3840, tile=None, budget_bytes=None)


class _Full:
    """A backend on a device that has room for `room` pixels at once."""

    name, precision, batches, reusable_bytes = "full", "fp32", True, 0
    footprint = Footprint(trunk_bytes=1, kept_bytes=0, tail_bytes=0, radius=2, tail_radius=0)

    def __init__(self, room: int) -> None:
        self.room = room
        self.sizes: list[tuple[int, int, int]] = []

    def run(self, lr: torch.Tensor, out: torch.Tensor, band: int) -> None:
        n, height, width, _ = lr.shape
        self.sizes.append((n, height, width))
        if n * height * width > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        out.copy_(lr.repeat_interleave(4, 1).repeat_interleave(4, 2))


def test_out_of_memory_shrinks_and_loses_nothing(
    tiny_model: weights.Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    upscaler = Upscaler(tiny_model, backend="eager", device="cpu")
    full = _Full(room=2500)
    monkeypatch.setattr(upscaler, "_backend", full)
    lr = frames(2, 64, 64)
    out = upscaler(lr)
    assert torch.equal(out, lr.repeat_interleave(4, 1).repeat_interleave(4, 2))
    assert full.sizes[0] == (2, 64, 64)
    assert "out of memory on cpu: 1 at once, whole instead of 2 at once, whole" in caplog.text
    assert "1 at once, in tiles of 32 pixels instead of 1 at once, whole" in caplog.text
    monkeypatch.setattr(upscaler, "_backend", _Full(room=100))
    with pytest.raises(MemoryBudgetError, match="smallest tile"):
        upscaler(lr)


# --- the self-check -----------------------------------------------------------------------------------------------


def _wrong_tap(call: dict[str, Any]) -> dict[str, Any]:
    weight = call["weight"].clone()
    weight[0] = 0
    return call | {"weight": weight}


def _wrong_slope(call: dict[str, Any]) -> dict[str, Any]:
    return call | ({"slopes": call["slopes"].roll(1) * 0.5} if call.get("slopes") is not None else {})


def _corrupt(op: str, change: Callable[[dict[str, Any]], dict[str, Any]] | str) -> Callable[..., torch.Tensor]:
    """The op with something broken on purpose: in what it is given, or in the last row of what it writes."""
    right = kernels.load(op).run

    def run(**call: Any) -> torch.Tensor:
        if callable(change):
            return right(**change(call))
        out = call["out"]
        before = out[:, -1:].clone()
        right(**call)
        out[:, -1:] = before if change == "row unwritten" else math.nan
        return out

    return run


CORRUPTIONS: list[tuple[str, Any]] = [
    *((op, _wrong_tap) for op in ("head", "conv3x3", "conv3x3_shuffle", "tail")),
    *((op, _wrong_slope) for op in ("head", "conv3x3", "conv3x3_shuffle")),
    *((op, "row unwritten") for op in ("frame_input", "head", "conv3x3", "conv3x3_shuffle", "tail")),
    *((op, "not finite") for op in ("conv3x3", "tail")),
]


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize(("op", "change"), CORRUPTIONS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_the_self_check_refuses_a_broken_op(
    tmp_path: Path, op: str, change: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Only a network that adds the frame to its result scales it in a step of its own.
    model = model_of(NETWORKS["compact" if op == "frame_input" else "paper's layout"](), tmp_path)
    monkeypatch.setattr(kernels.load(op), "run", _corrupt(op, change))
    with pytest.raises(BackendUnavailable, match="disagrees with eager"):
        FusedBackend(model, "cpu", "fp32")
    # `auto` goes on to eager, and says so.
    monkeypatch.setitem(backends.BACKENDS, "fused", BackendEntry(lambda device: Ok(), FusedBackend))
    assert select("auto", model, "cpu", "fp32").name == "eager"
    assert "disagrees with eager" in caplog.text


def test_gates_tell_right_from_wrong() -> None:
    want = torch.rand(1, 9, 9, 3, generator=torch.Generator().manual_seed(0))
    for precision, gate in parity.GATES.items():
        assert parity.agree(want, want, precision).passed
        assert parity.agree(want, want, precision).psnr_db == math.inf
        off = want.clone()
        off[0, 4, 4, 1] += 1.01 * gate.max_error
        assert not parity.agree(off, want, precision).passed
        noisy = want + 10 ** (-(gate.psnr_db - 1) / 20) * torch.ones_like(want)
        assert not parity.agree(noisy, want, precision).passed
        lost = want.clone()
        lost[0, 0, 0, 0] = math.nan
        assert not parity.agree(lost, want, precision).passed
        assert "FAIL" in str(parity.agree(lost, want, precision))


def test_large_tiles_are_met_by_a_small_frame() -> None:
    size = {"frames": 1, "height": 21, "width": 35, "cin": 64, "cout": 64, "itemsize": 2}
    few, many = launch.choose(90, 1, **size), launch.choose(90, 1 << 30, **size)
    assert few.rows > many.rows
    assert launch.choose(90, 132, **{**size, "height": 270, "width": 480}).rows == few.rows
    with launch.pretend(7):
        assert launch.processors(torch.device("cpu")) == 7
    assert launch.processors(torch.device("cpu")) == 1


# --- on a GPU -----------------------------------------------------------------------------------------------------


@pytest.fixture
def gpu_model() -> weights.Model:
    return weights.load("srresnet_x4")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("size", [(1, 1, 1), (1, 64, 64), (2, 135, 241), (1, 270, 480)])
def test_gpu_graph_equals_eager(gpu_model: weights.Model, precision: str, size: tuple[int, int, int]) -> None:
    backend = FusedBackend(gpu_model, "cuda", precision)
    plain = EagerBackend(gpu_model, "cuda", "fp32")
    n, height, width = size
    lr = frames(n, height, width).cuda() / 255
    for _ in range(2):  # captured, then replayed
        got, want = (torch.empty(n, height * 4, width * 4, 3, device="cuda") for _ in range(2))
        backend.run(lr, got, height)
        plain.run(lr, want, height)
        outcome = parity.agree(got, want, precision)
        assert outcome.passed, str(outcome)


@pytest.mark.gpu
def test_gpu_two_threads_two_streams(gpu_model: weights.Model) -> None:
    backend = FusedBackend(gpu_model, "cuda", "fp16")
    inputs = [[frames(1, 40, 50, seed=1000 * k + i).cuda() for i in range(200)] for k in range(2)]
    wants = [[_gpu_result(backend, lr) for lr in mine] for mine in inputs]
    torch.cuda.synchronize()
    gots: list[list[torch.Tensor]] = [[], []]

    def work(k: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            gots[k] = [_gpu_result(backend, lr.clone()) for lr in inputs[k]]
            torch.cuda.current_stream().synchronize()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mine, want in zip(gots, wants, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, want, strict=True))


def _gpu_result(backend: FusedBackend, lr: torch.Tensor) -> torch.Tensor:
    out = torch.empty(1, lr.shape[1] * 4, lr.shape[2] * 4, 3, dtype=lr.dtype, device="cuda")
    backend.run(lr, out, lr.shape[1])
    return out


@pytest.mark.gpu
def test_gpu_memory_is_flat_and_nothing_waits(gpu_model: weights.Model) -> None:
    upscaler = Upscaler(gpu_model, backend="fused", device="cuda")
    lr = frames(1, 120, 160).cuda()
    upscaler(lr)
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    assert host_waits(lambda: upscaler(lr)) == []
    for _ in range(1000):
        upscaler(lr)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= held + lr.numel() * 16
