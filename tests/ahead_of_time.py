"""Compile what the ops launch, for any architecture, with no GPU; and read what came out.

An op's own `run` is called with tensors that have no memory, and its kernels are replaced by recorders: what is
compiled here is what would be launched there, tiles and constants included. Not a test itself: `test_aot.py` asserts on
it and `kernel_table.py` prints it.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

from srgan_fast import kernels
from srgan_fast.kernels import launch

# Multiprocessors of a usual GPU of each architecture: A100, RTX 3090, RTX 4090, H100, B200, RTX 5090.
PROCESSORS = {80: 108, 86: 82, 89: 128, 90: 132, 100: 148, 120: 170}
# Barriers, and what a reduction or a change of layout asks for besides the tiles.
SHARED_BYTES_BESIDES = 1024
FRAMES = {"large": (1, 1080, 1920), "small": (1, 24, 24)}

_TYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.uint8: "u8",
    torch.uint16: "u16",
    torch.int8: "i8",
    torch.int64: "i64",
}
# How the machine code says it: tensor cores of each generation, TMA, asynchronous copies, 8x8 matrices by warps,
# registers given from warpgroup to warpgroup, spills, a product and a sum with one rounding.
_INSTRUCTIONS = {
    "mma": r"\bHMMA\b",
    "wgmma": r"\b[HI]GMMA\b",
    "tcgen05": r"\bUTCHMMA\b",
    "mma_int8": r"\bIMMA\b",
    "wgmma_int8": r"\bIGMMA\b",
    "tcgen05_int8": r"\bUTCIMMA\b",
    "tma_load": r"\bUTMALDG\b",
    "tma_store": r"\bUTMASTG\b",
    "cp_async": r"\bLDGSTS\b",
    "matrix_load": r"\bLDSM\b",
    "matrix_store": r"\bSTSM\b",
    "registers_moved": r"\bUSETMAXREG\b",
    "wgmma_groups": r"\bWARPGROUP\.ARRIVE\b",
    "spill": r"\b(?:LDL|STL)\b",
    "fma": r"\bFFMA2?\b",
}

Make = Callable[[int, int, int, torch.dtype], dict[str, Any]]


@dataclass(frozen=True)
class Entry:
    """A line of the kernel table: what `call` of the op is given for n frames of a size, or for `batch` alone."""

    op: str
    name: str
    make: Make
    call: str = "run"
    batch: tuple[int, int, int] | None = None

    @property
    def frames(self) -> dict[str, tuple[int, int, int]]:
        """Sizes to compile it for, by name."""
        return FRAMES if self.batch is None else {"{}x{}x{}".format(*self.batch): self.batch}


@dataclass(frozen=True)
class Launch:
    """One kernel as an op would launch it."""

    kernel: Any
    arguments: tuple[Any, ...]
    constants: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.kernel.__name__)


@dataclass(frozen=True)
class Built:
    """What the compiler made of a launch."""

    registers: int
    stack_bytes: int
    local_bytes: int
    shared_bytes: int
    instructions: dict[str, int]


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor without memory: only its shape, dtype and alignment count here."""
    return torch.empty(*shape, dtype=dtype, device="meta")


def _conv3x3(cin: int, cout: int, *, slopes: bool = False, residual: bool = False) -> Make:
    def make(n: int, h: int, w: int, dtype: torch.dtype) -> dict[str, Any]:
        return {
            "x": empty(n, h, w, cin, dtype=dtype),
            "weight": empty(9, cin, cout, dtype=dtype),
            "bias": empty(cout),
            "slopes": empty(cout) if slopes else None,
            "residual": empty(n, h, w, cout, dtype=dtype) if residual else None,
        }

    return make


def _shuffle(cin: int, channels: int, r: int = 2) -> Make:
    def make(n: int, h: int, w: int, dtype: torch.dtype) -> dict[str, Any]:
        outputs = r * r * channels
        x, weight = empty(n, h, w, cin, dtype=dtype), empty(9, cin, outputs, dtype=dtype)
        return {"x": x, "weight": weight, "bias": empty(outputs), "slopes": empty(channels), "r": r}

    return make


def _head(size: int, cout: int) -> Make:
    def make(n: int, h: int, w: int, dtype: torch.dtype) -> dict[str, Any]:
        weight = empty(size, max(16, 1 << (4 * size - 1).bit_length()), cout, dtype=dtype)
        return {"x": empty(n, h, w, 4, dtype=dtype), "weight": weight, "bias": empty(cout), "slopes": empty(cout)}

    return make


def _tail(size: int, cin: int, r: int, result: torch.dtype = torch.uint8, *, base: bool = False) -> Make:
    def make(n: int, h: int, w: int, dtype: torch.dtype) -> dict[str, Any]:
        return {
            "x": empty(n, h, w, cin, dtype=dtype),
            "weight": empty(size * size, cin, 3 * r * r, dtype=dtype),
            "bias": empty(3 * r * r),
            "gain": empty(3),
            "offset": empty(3),
            "r": r,
            "dtype": result,
            "tanh": not base,
            "base": empty(n, h, w, 4, dtype=dtype) if base else None,
        }

    return make


def _input(frames: torch.dtype) -> Make:
    def make(n: int, h: int, w: int, dtype: torch.dtype) -> dict[str, Any]:
        return {"frames": empty(n, h, w, 3, dtype=frames), "gain": empty(3), "offset": empty(3), "dtype": dtype}

    return make


def _prelu(channels: int, r: int = 2, *, backward: bool = False) -> Make:
    def make(n: int, h: int, w: int, dtype: torch.dtype) -> dict[str, Any]:
        arguments = {"x": empty(n, h, w, channels * r * r, dtype=dtype), "slopes": empty(channels), "r": r}
        return arguments | ({"dy": empty(n, h * r, w * r, channels, dtype=dtype)} if backward else {})

    return make


def _int8(
    cin: int,
    channels: int,
    *,
    r: int = 1,
    slopes: bool = False,
    both: bool = False,
    result: torch.dtype | None = None,
) -> Make:
    """`both`: with residual and a second, quantised result."""

    def make(n: int, h: int, w: int, dtype: torch.dtype) -> dict[str, Any]:
        outputs, shape = r * r * channels, (n, h * r, w * r, channels)
        return {
            "x": empty(n, h, w, cin, dtype=torch.int8),
            "weight": empty(9, cin, outputs, dtype=torch.int8),
            "gain": empty(outputs),
            "bias": empty(outputs),
            "dtype": result or dtype,
            "slopes": empty(channels) if slopes else None,
            "residual": empty(*shape, dtype=dtype) if both else None,
            "quantised": empty(*shape, dtype=torch.int8) if both else None,
            "inverse": 40.0,
            "r": r,
        }

    return make


def _stats(cin: int, cout: int, stride: int = 1, *, bias: bool = False) -> Make:
    def make(n: int, h: int, w: int, dtype: torch.dtype) -> dict[str, Any]:
        x, weight = empty(n, h, w, cin, dtype=dtype), empty(cout, 3, 3, cin, dtype=dtype)
        return {"x": x, "weight": weight, "bias": empty(cout) if bias else None, "stride": stride}

    return make


def _norm(channels: int, act: str = "", *, skip: bool = False, backward: bool = False) -> Make:
    """`act`: slopes by channel, shared, constant or none."""

    def make(n: int, h: int, w: int, dtype: torch.dtype) -> dict[str, Any]:
        arguments = {name: empty(channels) for name in ("mean", "variance", "gamma", "beta")}
        arguments |= {
            name: empty(n, h, w, channels, dtype=dtype) for name in ["x", *["dy"] * backward, *["skip"] * skip]
        }
        slopes = {"channel": empty(channels), "shared": empty(1)}.get(act)
        return {**arguments, "slopes": slopes, "slope": 0.2 if act == "constant" else 1.0}

    return make


def _crops(crop: int, scale: int, *, pairs: bool = False) -> Make:
    """A batch of 16, whatever the frame; the sizes of the images are known to the GPU alone."""

    def make(n: int, h: int, w: int, dtype: torch.dtype) -> dict[str, Any]:
        size = crop // scale
        return {
            "pixels": empty(2**32, dtype=torch.uint8),
            "table": empty(69, 3, dtype=torch.int64),
            "draws": empty(16, 4, dtype=torch.int64),
            "lr": empty(16, size, size, 3),
            "crop": crop,
            "scale": scale,
            "lows": empty(69, 3, dtype=torch.int64) if pairs else None,
        }

    return make


_COLOUR = {"matrix": "bt709", "full": False, "siting": "left"}


def _chroma(h: int, w: int, subsampling: str) -> tuple[int, int]:
    return (h + 1) // 2 if subsampling == "420" else h, w if subsampling == "444" else (w + 1) // 2


def _to_rgb(planes: torch.dtype, subsampling: str, result: torch.dtype | None = None, **given: Any) -> Make:
    """`result` None is the dtype that is asked for."""

    def make(n: int, h: int, w: int, dtype: torch.dtype) -> dict[str, Any]:
        chroma = None if subsampling == "400" else empty(*_chroma(h, w, subsampling), dtype=planes)
        named = {"depth": 8 * min(planes.itemsize, 2), "dtype": result or dtype, **_COLOUR, **given}
        return {"y": empty(h, w, dtype=planes), "u": chroma, "v": chroma, **named}

    return make


def _to_yuv(pixels: torch.dtype, subsampling: str, result: torch.dtype | None = None, **given: Any) -> Make:
    def make(n: int, h: int, w: int, dtype: torch.dtype) -> dict[str, Any]:
        named = {"depth": 8 * min((result or dtype).itemsize, 2), "subsampling": subsampling, "dtype": result or dtype}
        return {"rgb": empty(h, w, 3, dtype=pixels), **named, **_COLOUR, **given}

    return make


def _maps(channels: int) -> Make:
    return lambda n, h, w, dtype: {"x": empty(n, h, w, channels, dtype=dtype)}


# The network's own layers first, in floats and then in int8; then other widths, scales and pixels.
TABLE = (
    Entry("frame_input", "uint8", _input(torch.uint8)),
    Entry("head", "9x9 to 64", _head(9, 64)),
    Entry("conv3x3", "64 to 64, PReLU", _conv3x3(64, 64, slopes=True)),
    Entry("conv3x3", "64 to 64, residual", _conv3x3(64, 64, residual=True)),
    Entry("conv3x3_shuffle", "64 to 64, x2", _shuffle(64, 64)),
    Entry("conv3x3", "64 to 256", _conv3x3(64, 256, slopes=True)),
    Entry("tail", "5x5 from 256, x2", _tail(5, 256, 2)),
    Entry("pixelshuffle_prelu", "64, x2", _prelu(64)),
    Entry("pixelshuffle_prelu", "64, x2, backward", _prelu(64, backward=True), "backward"),
    Entry("quantise_int8", "64", lambda n, h, w, dtype: {"x": empty(n, h, w, 64, dtype=dtype), "inverse": 40.0}),
    Entry("conv3x3_int8", "64 to 64, PReLU, to int8", _int8(64, 64, slopes=True, result=torch.int8)),
    Entry("conv3x3_int8", "64 to 64, residual, both", _int8(64, 64, both=True)),
    Entry("conv3x3_int8", "64 to 64, x2, to int8", _int8(64, 64, r=2, slopes=True, result=torch.int8)),
    Entry("conv3x3_int8", "64 to 256, PReLU", _int8(64, 256, slopes=True)),
    Entry("frame_input", "float32", _input(torch.float32)),
    Entry("head", "3x3 to 64", _head(3, 64)),
    Entry("head", "9x9 to 16", _head(9, 16)),
    Entry("head", "9x9 to 128", _head(9, 128)),
    Entry("conv3x3", "16 to 16, PReLU", _conv3x3(16, 16, slopes=True)),
    Entry("conv3x3", "128 to 128, PReLU", _conv3x3(128, 128, slopes=True)),
    Entry("conv3x3", "128 to 128, residual", _conv3x3(128, 128, residual=True)),
    Entry("conv3x3", "32 to 128, residual", _conv3x3(32, 128, residual=True)),
    Entry("conv3x3", "20 to 36, PReLU", _conv3x3(20, 36, slopes=True)),
    Entry("conv3x3_shuffle", "16 to 16, x2", _shuffle(16, 16)),
    Entry("conv3x3_shuffle", "128 to 128, x2", _shuffle(128, 128)),
    Entry("conv3x3_shuffle", "64 to 64, x3", _shuffle(64, 64, 3)),
    Entry("tail", "5x5 from 512, x2, float32", _tail(5, 512, 2, torch.float32)),
    Entry("tail", "3x3 from 64, x4, base", _tail(3, 64, 4, base=True)),
    Entry("tail", "1x1 from 64, x8, uint16", _tail(1, 64, 8, torch.uint16)),
    Entry("tail", "9x9 from 64, x1", _tail(9, 64, 1)),
    Entry("pixelshuffle_prelu", "20, x3", _prelu(20, 3)),
    Entry("conv3x3_int8", "16 to 16, PReLU, to int8", _int8(16, 16, slopes=True, result=torch.int8)),
    Entry("conv3x3_int8", "112 to 112, residual, both", _int8(112, 112, both=True)),
    Entry("conv3x3_int8", "96 to 80, x3", _int8(96, 80, r=3)),
    Entry("training_crops", "x4", _crops(96, 4)),
    Entry("training_crops", "x2", _crops(96, 2)),
    Entry("training_crops", "x8", _crops(96, 8)),
    Entry("training_crops", "x2, pairs", _crops(96, 2, pairs=True)),
    Entry("yuv_to_rgb", "4:2:0, uint8", _to_rgb(torch.uint8, "420", torch.uint8)),
    Entry("yuv_to_rgb", "4:2:0, uint16, topleft", _to_rgb(torch.uint16, "420", torch.uint16, siting="topleft")),
    Entry("yuv_to_rgb", "4:2:2, uint16 to floats", _to_rgb(torch.uint16, "422", siting="centre")),
    Entry("yuv_to_rgb", "4:4:4, floats", _to_rgb(torch.float32, "444")),
    Entry("yuv_to_rgb", "grey, uint8", _to_rgb(torch.uint8, "400", torch.uint8)),
    Entry("rgb_to_yuv", "4:2:0, uint8", _to_yuv(torch.uint8, "420", torch.uint8)),
    Entry("rgb_to_yuv", "4:2:0, uint16, topleft", _to_yuv(torch.uint16, "420", torch.uint16, siting="topleft")),
    Entry("rgb_to_yuv", "4:2:2, uint8 to floats", _to_yuv(torch.uint8, "422", siting="centre")),
    Entry("rgb_to_yuv", "4:4:4, floats to uint8", _to_yuv(torch.float32, "444", torch.uint8)),
    Entry("rgb_to_yuv", "grey, uint8", _to_yuv(torch.uint8, "400", torch.uint8)),
)
# How many of them are the layers of the SRGAN generator itself.
NETWORK = TABLE[:14]

# What training on 16 crops of 96x96 launches besides: the trunk's layers, then the discriminator's, from large maps to
# small; then what other networks add.
TRAINING = (
    Entry("conv3x3_stats", "64 to 64", _stats(64, 64), batch=(16, 24, 24)),
    Entry("batchnorm_act", "64, PReLU", _norm(64, "shared"), batch=(16, 24, 24)),
    Entry("batchnorm_act", "64, PReLU, backward", _norm(64, "shared", backward=True), "backward", (16, 24, 24)),
    Entry("batchnorm_act", "64, skip", _norm(64, skip=True), batch=(16, 24, 24)),
    Entry("batchnorm_act", "64, backward", _norm(64, backward=True), "backward", (16, 24, 24)),
    Entry("pixelshuffle_prelu", "64, x1", _prelu(64, 1), batch=(16, 24, 24)),
    Entry("pixelshuffle_prelu", "64, x1, backward", _prelu(64, 1, backward=True), "backward", (16, 24, 24)),
    Entry("pixelshuffle_prelu", "64, x2", _prelu(64), batch=(16, 48, 48)),
    Entry("pixelshuffle_prelu", "64, x2, backward", _prelu(64, backward=True), "backward", (16, 48, 48)),
    Entry("conv3x3_stats", "64 to 64, stride 2", _stats(64, 64, 2), batch=(16, 96, 96)),
    Entry("conv3x3_stats", "64 to 128", _stats(64, 128), batch=(16, 48, 48)),
    Entry("conv3x3_stats", "128 to 128, stride 2", _stats(128, 128, 2), batch=(16, 48, 48)),
    Entry("conv3x3_stats", "128 to 256", _stats(128, 256), batch=(16, 24, 24)),
    *(
        entry
        for channels, size in ((64, 48), (128, 48), (128, 24), (256, 24), (256, 12), (512, 12), (512, 6))
        for entry in (
            Entry("batchnorm_act", f"{channels}, slope", _norm(channels, "constant"), batch=(16, size, size)),
            Entry(
                "batchnorm_act",
                f"{channels}, slope, backward",
                _norm(channels, "constant", backward=True),
                "backward",
                (16, size, size),
            ),
        )
    ),
    Entry("batchnorm_act", "256, statistics", _maps(256), "statistics", (16, 12, 12)),
    Entry("batchnorm_act", "512, statistics", _maps(512), "statistics", (16, 12, 12)),
    Entry("batchnorm_act", "512, statistics", _maps(512), "statistics", (16, 6, 6)),
    Entry("conv3x3_stats", "20 to 36, bias", _stats(20, 36, bias=True), batch=(3, 17, 9)),
    Entry("batchnorm_act", "20, slopes, skip", _norm(20, "channel", skip=True), batch=(3, 17, 9)),
    Entry("batchnorm_act", "20, slopes, backward", _norm(20, "channel", backward=True), "backward", (3, 17, 9)),
)


_built: dict[str, Built] = {}


class _Recorder:
    """Stands for a kernel: kernel[grid](...) leaves a `Launch` in a list and runs nothing."""

    def __init__(self, kernel: Any, seen: list[Launch]) -> None:
        self._kernel, self._seen = kernel, seen

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert all(1 <= size <= most for size, most in zip(grid, (2**31 - 1, 65535, 65535), strict=False)), grid
        return lambda *arguments, **constants: self._seen.append(Launch(self._kernel, arguments, constants))


@contextlib.contextmanager
def assumed(sm: int, processors: int = 1) -> Iterator[None]:
    """Inside, the ops take every device for a GPU of this architecture and choose tiles and kernels as there."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(launch, "architecture", return_value=sm))
        stack.enter_context(mock.patch.object(launch, "processors", return_value=processors))
        for op in kernels.OPS:
            package = kernels.load(op)
            for name, answer in (("architecture", sm), ("why_not_triton", None), ("takes_reference", False)):
                if hasattr(package, name):
                    stack.enter_context(mock.patch.object(package, name, return_value=answer))
        yield


def launches(entry: Entry, frame: tuple[int, int, int], dtype: torch.dtype, sm: int) -> list[Launch]:
    """What an op would launch on a GPU of an architecture for n frames of a size, (n, h, w)."""
    package = kernels.load(entry.op)
    module = importlib.import_module(f"{package.__name__}.kernel")
    seen: list[Launch] = []
    with assumed(sm, PROCESSORS[sm]), contextlib.ExitStack() as stack:
        for name, value in vars(module).copy().items():
            if isinstance(value, triton.runtime.JITFunction):
                stack.enter_context(mock.patch.object(module, name, _Recorder(value, seen)))
        getattr(package, entry.call)(**entry.make(*frame, dtype))
    return seen


def build(one: Launch, sm: int) -> Built:
    """Compile a launch for an architecture and take the machine code apart."""
    names = one.kernel.arg_names
    options = {name: value for name, value in one.constants.items() if name not in names}
    given = dict(zip(names, one.arguments, strict=False)) | {
        name: value for name, value in one.constants.items() if name in names
    }
    constants = {name for name, param in zip(names, one.kernel.params, strict=True) if param.is_constexpr}
    # As at a launch: a 1 becomes a constant, and what 16 divides is known to be so.
    constants |= {name for name, value in given.items() if type(value) is int and value == 1}
    signature = {name: "constexpr" if name in constants else _type(given[name]) for name in names}
    attrs = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if isinstance(given[name], Tensor) or (signature[name] == "i32" and given[name] % 16 == 0)
    }
    values = {name: given[name] for name in constants}
    key = repr((one.name, sorted(signature.items()), sorted(values.items()), attrs, sorted(options.items()), sm))
    # Layers that differ in sizes alone share a kernel.
    if key not in _built:
        source = ASTSource(one.kernel, signature, values, attrs)
        compiled = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)
        _built[key] = read(sass(compiled.asm["cubin"]), int(compiled.metadata.shared))
    return _built[key]


def _type(value: Any) -> str:
    if isinstance(value, TensorDescriptor):
        return f"tensordesc<{_TYPES[value.base.dtype]}{list(value.block_shape)}>"
    if isinstance(value, Tensor):
        return f"*{_TYPES[value.dtype]}"
    if isinstance(value, float):
        return "fp32"
    assert isinstance(value, int), f"no type known for {value!r}"
    return "i32" if value < 2**31 else "i64"


def sass(cubin: bytes) -> str:
    """The resources and the machine code of a compiled kernel, as cuobjdump writes them."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tools / "cuobjdump"), "--dump-resource-usage", "--dump-sass", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def read(said: str, shared_bytes: int) -> Built:
    """What `sass` says, in numbers."""
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", said)
    assert found, f"cuobjdump names no resources: {said[:500]}"
    counts = {name: len(re.findall(pattern, said)) for name, pattern in _INSTRUCTIONS.items()}
    return Built(int(found[1]), int(found[2]), int(found[3]), shared_bytes, counts)
