"""libsrgan_fast: what it makes of a weights file, and its whole sequence on the emulator in the place of a GPU."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from emulated import COMPILER, EMULATOR
from models import model_of
from torch import Tensor

from library import (
    BAD_ARGUMENT,
    CMAKE,
    FAILED_CHECK,
    HEADER,
    HOST,
    LIBRARY,
    NO_DEVICE,
    OK,
    TOO_SMALL,
    UNSUPPORTED_NETWORK,
    Build,
    Library,
    in_parallel,
    needs_cmake,
    needs_compiler,
    needs_nvcc,
)
from srgan_fast import weights
from srgan_fast.backends import program
from srgan_fast.backends.eager import EagerBackend, quantise
from srgan_fast.kernels import hopper, parity
from srgan_fast.kernels.conv3x3 import sm90 as conv3x3
from srgan_fast.kernels.head import sm90 as head
from srgan_fast.kernels.tail import sm90 as tail
from srgan_fast.model import Generator, GeneratorConfig
from srgan_fast.rewrite import folded, without_last_shuffle


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return Build(tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="module")
def host(build: Build) -> list[str]:
    return build.objects(*HOST)


@pytest.fixture(scope="module")
def machine(build: Build) -> list[str]:
    return build.objects(EMULATOR / "machine.cpp")


@pytest.fixture(scope="module")
def emulated_path(build: Build, host: list[str], machine: list[str]) -> Path:
    return build.emulated(host, machine)


@pytest.fixture(scope="module")
def inspect(build: Build, host: list[str]) -> Callable[..., bytes]:
    pure = [name for name in host if Path(name).name not in ("api.cpp.o", "check.cpp.o")]
    tool = build.linked("inspect", *pure, *build.objects(LIBRARY / "tests" / "inspect.cpp"))

    def run(*words: object, given: bytes = b"") -> bytes:
        result = subprocess.run([str(tool), *map(str, words)], input=given, capture_output=True)
        assert result.returncode == 0, result.stderr.decode()
        return result.stdout

    return run


CONFIGS = {
    "x4": GeneratorConfig(blocks=2),
    "x2, no norm, a slope a channel, tanh": GeneratorConfig(
        scale=2, blocks=1, norm="none", prelu="channel", activation="tanh"
    ),
    "biases before norms, none after the skip": GeneratorConfig(blocks=1, bias=True, skip_end="none", prelu="channel"),
    "no block": GeneratorConfig(scale=2, blocks=0),
}


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def model(request: pytest.FixtureRequest, tmp_path: Path) -> weights.Model:
    return model_of(Generator(request.param), tmp_path)


@pytest.fixture
def small(tmp_path: Path) -> weights.Model:
    return model_of(Generator(GeneratorConfig(blocks=1, prelu="channel")), tmp_path)


def frames_of(n: int, h: int, w: int) -> Tensor:
    return torch.randint(0, 256, (n, h, w, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def assert_equals_eager(model: weights.Model, frames: Tensor, pixels: Tensor) -> None:
    want = torch.empty(pixels.shape)
    EagerBackend(model, "cpu", "fp32").run(frames / 255, want, frames.shape[1])
    levels = quantise(want, torch.uint8)
    assert levels.float().std() > 2  # a picture, not one colour
    agreement = parity.agree(pixels / 255, levels / 255, "fp16")
    assert agreement.passed, str(agreement)
    off = (pixels.int() - levels.int()).abs()
    assert off.max() <= 1
    assert (off > 0).float().mean() < 0.02


# --- without kernels: the file, the weights, the order of things


@needs_compiler
def test_packed_weights_are_those_of_python(
    model: weights.Model, tmp_path: Path, inspect: Callable[..., bytes]
) -> None:
    network = without_last_shuffle(folded(model.network))
    with torch.no_grad():
        expected = program.walk(network, model.info, torch.float16, torch.device("cpu"))
    file = tmp_path / "network.safetensors"
    content = inspect("weights", file)
    scaling, *lines = [[int(word) for word in line.split()] for line in inspect("steps", file).decode().splitlines()]
    assert len(lines) == len(expected.steps)
    packed: dict[str, Callable[[Tensor], Tensor]] = {
        "head": head.pack,
        "conv3x3": conv3x3._rows,
        "conv3x3_shuffle": conv3x3._rows,
        "tail": tail.pack,
    }

    def assert_holds(offset: int, value: Tensor) -> None:
        assert offset % 256 == 0
        raw = value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        assert content[offset : offset + len(raw)] == raw

    for step, (_, _, _, r, weight, bias, slopes) in zip(expected.steps, lines, strict=True):
        assert_holds(weight, packed[step.op](step.constants["weight"]))
        assert_holds(bias, step.constants["bias"])
        assert (slopes == -1) == ("slopes" not in step.constants)
        if slopes != -1:
            assert_holds(slopes, step.constants["slopes"])
        assert r == step.constants.get("r", 1)
    first, last = expected.steps[0].constants, expected.steps[-1].constants
    for offset, value in zip(
        scaling, (first["gain"] / 255, first["offset"], last["gain"], last["offset"]), strict=True
    ):
        assert_holds(offset, value)


@needs_compiler
def test_the_sequence_by_the_reference_equals_eager(
    model: weights.Model, tmp_path: Path, inspect: Callable[..., bytes]
) -> None:
    frames = frames_of(2, 5, 7)
    scale = model.info.scale
    given = frames.numpy().tobytes()
    result = inspect("run", tmp_path / "network.safetensors", 2, 5, 7, given=given)
    pixels = torch.frombuffer(bytearray(result), dtype=torch.uint8).view(2, 5 * scale, 7 * scale, 3)
    assert_equals_eager(model, frames, pixels)


@needs_compiler
def test_workspace_is_what_python_takes(small: weights.Model, tmp_path: Path, inspect: Callable[..., bytes]) -> None:
    network = without_last_shuffle(folded(small.network))
    python = program.walk(network, small.info, torch.float16, torch.device("cpu"))
    ours = int(inspect("workspace", tmp_path / "network.safetensors", 1, 270, 480))
    theirs = program.place(python, 1, 270, 480, torch.uint8).size_bytes
    # Theirs has the frames and the picture too.
    assert ours <= theirs <= ours + 270 * 480 * 3 * 17 * 2


@needs_compiler
def test_tiles_are_as_tall_as_in_python(inspect: Callable[..., bytes]) -> None:
    generator = torch.Generator().manual_seed(1)
    sizes = [(1, 270, 480), (1, 540, 960), (4, 180, 320), (1, 1, 1)]
    sizes += [tuple(torch.randint(1, 700, (3,), generator=generator).tolist()) for _ in range(12)]
    kinds = [(conv3x3.heights(layout), 30 if layout.name == "FLAT" else 8, 36) for layout in conv3x3.Layout]
    for n, h, w in sizes:
        for heights, columns, steps in kinds:
            computed = 32 if columns == 30 else 8
            for blocks in (132, 33):
                want = hopper.tile_rows(n, h, w, columns, computed, blocks, heights, steps)
                assert int(inspect("rows", n, h, w, columns, computed, blocks, steps, *heights)) == want


def test_tables_have_the_heights_of_python() -> None:
    for layout in conv3x3.Layout:
        text = (LIBRARY / "src" / "cuda" / f"conv_{layout.name.lower()}.cu").read_text()
        match = re.search(rf"conv_table_of<{layout.value}, (\d+), (\d+)>", text)
        assert match
        step, tallest = map(int, match.groups())
        assert conv3x3.heights(layout) == tuple(range(step, tallest + 1, step))
    text = (LIBRARY / "src" / "cuda" / "kernels.cu").read_text()
    for name, heights in (("HeadMaker", head.HEIGHTS), ("TailMaker", tail.heights(4, 5))):
        match = re.search(rf"table<{name}, (\d+), (\d+)>", text)
        assert match
        step, tallest = map(int, match.groups())
        assert tuple(heights) == tuple(range(step, tallest + 1, step))


def test_the_header_has_the_version_of_the_package() -> None:
    numbers = re.findall(r"#define SRGAN_FAST_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", HEADER.read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert ".".join(numbers) == project["version"]


# --- the library as it ships, on the emulator


def room(size: int) -> Tensor:
    """Memory aligned to 256 bytes, full of NaN, with as much on both sides that must stay as it is."""
    memory = torch.full((size + 768,), 0xFF, dtype=torch.uint8)
    start = -memory.data_ptr() % 256 + 256
    return memory[start : start + size]


@pytest.fixture
def library(emulated_path: Path) -> Library:
    made = Library(emulated_path)
    made.c.emulate(ctypes.c_uint(0), ctypes.c_uint64(1))
    return made


@needs_compiler
@pytest.mark.parametrize("kind", ["x4", pytest.param("x2, no norm, a slope a channel, tanh", marks=pytest.mark.slow)])
def test_frames_through_the_c_interface_equal_eager(kind: str, tmp_path: Path, library: Library) -> None:
    model = model_of(Generator(CONFIGS[kind]), tmp_path)
    n, h, w = 2, 9, 11
    scale = model.info.scale
    status, network = library.create(tmp_path / "network.safetensors")
    assert status == OK, library.said
    found = ctypes.c_int()
    assert library.c.srgan_fast_scale(network, ctypes.byref(found)) == OK
    assert found.value == scale
    size = library.workspace(network, n, h, w)
    frames, workspace = frames_of(n, h, w), room(size)
    for _ in range(2):  # what the first leaves in the workspace means nothing to the second
        pixels = torch.zeros(n, h * scale, w * scale, 3, dtype=torch.uint8)
        pointers = (frames.data_ptr(), pixels.data_ptr())
        status = library.c.srgan_fast_enqueue(network, *pointers, n, h, w, workspace.data_ptr(), size, None)
        assert status == OK, library.said
        assert_equals_eager(model, frames, pixels)
    beside = torch.as_strided(workspace, (256,), (1,), workspace.storage_offset() + size)
    assert (beside == 0xFF).all()
    library.c.srgan_fast_destroy(network)


@needs_compiler
@pytest.mark.parametrize("reading", [1, pytest.param(2, marks=pytest.mark.slow)], ids=["boxes", "flat"])
def test_hardware_that_reads_otherwise_gets_another_layout(
    reading: int, small: weights.Model, tmp_path: Path, library: Library
) -> None:
    library.c.emulate(ctypes.c_uint(reading), ctypes.c_uint64(1))
    status, network = library.create(tmp_path / "network.safetensors")
    assert status == OK, library.said
    n, h, w = 1, 7, 5
    size = library.workspace(network, n, h, w)
    frames, pixels = frames_of(n, h, w), torch.zeros(n, 4 * h, 4 * w, 3, dtype=torch.uint8)
    pointers = (frames.data_ptr(), pixels.data_ptr())
    workspace = room(size)
    status = library.c.srgan_fast_enqueue(network, *pointers, n, h, w, workspace.data_ptr(), size, None)
    assert status == OK, library.said
    assert_equals_eager(small, frames, pixels)
    library.c.srgan_fast_destroy(network)


@needs_compiler
def test_calls_that_cannot_be_say_why(small: weights.Model, tmp_path: Path, library: Library) -> None:
    file = tmp_path / "network.safetensors"
    status, network = library.create(file, device=1)
    assert (status, network.value) == (NO_DEVICE, None)
    status, network = library.create(file)
    assert status == OK, library.said
    size = library.workspace(network, 1, 4, 4)
    frames, pixels, workspace = room(48), room(768), room(size)
    sound: dict[str, Any] = {
        "frames": frames.data_ptr(),
        "out": pixels.data_ptr(),
        "n": 1,
        "h": 4,
        "w": 4,
        "workspace": workspace.data_ptr(),
        "size": size,
    }
    wrong: list[tuple[dict[str, Any], int, str]] = [
        ({"frames": None}, BAD_ARGUMENT, "frames"),
        ({"out": None}, BAD_ARGUMENT, "result"),
        ({"workspace": None}, BAD_ARGUMENT, "workspace"),
        ({"n": 0}, BAD_ARGUMENT, "0 frames"),
        ({"h": -1}, BAD_ARGUMENT, "of -1 x 4"),
        ({"w": 2**31 - 1, "h": 2**31 - 1, "n": 2**31 - 1}, BAD_ARGUMENT, "fewer frames"),
        ({"size": size - 1}, TOO_SMALL, f"{size} bytes, got {size - 1}"),
        ({"workspace": workspace.data_ptr() + 16}, BAD_ARGUMENT, "256 bytes"),
        ({"out": pixels.data_ptr() + 2}, BAD_ARGUMENT, "4 bytes"),
        ({"out": frames.data_ptr()}, BAD_ARGUMENT, "memory of their own"),
        ({"frames": workspace.data_ptr() + size - 1}, BAD_ARGUMENT, "memory of their own"),
    ]
    for change, code, text in wrong:
        assert library.c.srgan_fast_enqueue(network, *(sound | change).values(), None) == code, change
        assert text in library.said
    assert (pixels == 0xFF).all()
    assert library.c.srgan_fast_enqueue(network, *sound.values(), None) == OK, library.said
    assert not (pixels == 0xFF).all()
    library.c.srgan_fast_destroy(network)


@needs_compiler
def test_a_program_in_c(build: Build, emulated_path: Path, small: weights.Model, tmp_path: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    assert compiler
    words = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", build.paths[0], LIBRARY / "tests" / "interface.c"]
    words += ["-L", emulated_path.parent, "-lsrgan_fast", f"-Wl,-rpath,{emulated_path.parent}"]
    program_file = tmp_path / "interface"
    in_parallel([[compiler, *map(str, words), "-o", str(program_file)]])
    result = subprocess.run([program_file, tmp_path / "network.safetensors", tmp_path], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""  # it says there why it has no network


@needs_compiler
def test_the_examples_in_the_documents_are_code(build: Build, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "c.md").read_text()
    (code,) = re.findall(r"^```c\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "example.c").write_text(code)
    # What the example takes from CUDA, as far as a compiler has to know it.
    (tmp_path / "cuda_runtime_api.h").write_text(
        "#include <stddef.h>\ntypedef struct stream* cudaStream_t;\nint cudaMalloc(void** out, size_t bytes);\n"
        "int cudaFree(void* memory);\n"
    )
    words = [str(COMPILER), "-x", "c", "-std=c99", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{tmp_path}"]
    in_parallel([[*words, build.paths[0], str(tmp_path / "example.c")]])
    (lines,) = re.findall(r"^```cmake\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    example = (ROOT / "examples" / "c" / "CMakeLists.txt").read_text()
    assert all(line in example for line in lines.splitlines())


@needs_compiler
def test_networks_of_others_are_refused_with_the_reason(tmp_path: Path, library: Library) -> None:
    for config, reason in (
        (GeneratorConfig(blocks=1, width=32), "width is 32"),
        (GeneratorConfig(blocks=1, scale=8), "scale is 8"),
        (GeneratorConfig(blocks=1, norm="instance"), "norm is instance"),
        (GeneratorConfig(blocks=1, kernel=3), "kernel is 3"),
        (GeneratorConfig(blocks=1, skip_end="prelu"), "skip_end is prelu"),
    ):
        weights.save(tmp_path / "other.safetensors", Generator(config), name="other", recipe={})
        status, network = library.create(tmp_path / "other.safetensors")
        assert (status, network.value) == (UNSUPPORTED_NETWORK, None)
        assert reason in library.said


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "old", "new", "named"),
    [
        ("head/sm90.cu", "const float v = sum + bias[half];", "const float v = sum;", "head"),
        ("conv3x3/sm90.cu", "v[0] += low;", "v[0] -= low;", "conv3x3 with a residual"),
        (
            "include/conv3x3.cuh",
            "work.order.place(i,",
            "work.order.place(work.order.reversed ? work.order.tiles - 1 : i,",
            "conv3x3",
        ),
        # Kernels are checked on tiles in reverse; the other order is the whole network's part.
        (
            "include/conv3x3.cuh",
            "work.order.place(i,",
            "work.order.place(work.order.reversed ? work.order.tiles - 1 - i : 0,",
            "whole network",
        ),
        ("tail/sm90.cu", "v[o] = p.bias[o];", "v[o] = 0;", "tail"),
    ],
)
def test_a_wrong_kernel_is_refused_with_its_figure(
    file: str, old: str, new: str, named: str, small: weights.Model, tmp_path: Path, host: list[str], machine: list[str]
) -> None:
    (tmp_path / "build").mkdir()
    broken = Library(Build(tmp_path / "build", {file: (old, new)}).emulated(host, machine))
    status, network = broken.create(tmp_path / "network.safetensors")
    assert (status, network.value) == (FAILED_CHECK, None)
    assert f"this GPU's {named}" in broken.said
    assert "off by" in broken.said


# --- by CMake


def configured(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [str(CMAKE), "-S", str(ROOT), "-B", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | variables)


@needs_cmake
@pytest.mark.parametrize(
    ("variables", "said"),
    [({"CXX": "/bin/false"}, "needs a C and a C++ compiler"), ({"CUDACXX": "/bin/false"}, "needs nvcc")],
)
def test_a_missing_compiler_is_named(variables: dict[str, str], said: str, tmp_path: Path) -> None:
    result = configured(tmp_path, **variables)
    assert result.returncode != 0
    assert said in " ".join(result.stderr.split())


@needs_cmake
@needs_nvcc
@pytest.mark.slow
def test_built_by_nvcc_and_tested_by_ctest(tmp_path: Path) -> None:
    result = configured(tmp_path)
    assert result.returncode == 0, result.stderr
    for command in ([CMAKE, "--build", tmp_path, "-j2"], [shutil.which("ctest"), "--test-dir", tmp_path]):
        result = subprocess.run([*map(str, command)], capture_output=True, text=True)
        assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    library = Library(tmp_path / "library" / "libsrgan_fast.so")
    assert library.c.srgan_fast_version() == 100
    status, network = library.create(ROOT / "srgan_fast" / "data" / "srresnet_x4.safetensors")
    if status != OK:
        assert network.value is None
        assert library.c.srgan_fast_error_string(status).decode() in (
            "no NVIDIA driver, or one that is too old",
            "no such GPU",
            "unsupported GPU: compute capability 9.0 is needed",
        )
        assert library.said
    library.c.srgan_fast_destroy(network)


@pytest.mark.slow
def test_pip_asks_for_no_compiler(tmp_path: Path) -> None:
    """As `pip install .` does it: with neither nvcc nor a compiler, and with ones that do not work."""
    nothing = tmp_path / "bin"
    nothing.mkdir()
    broken = {"PATH": str(nothing), "CC": "/bin/false", "CXX": "/bin/false", "CUDACXX": "/bin/false"}
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | broken)
    assert result.returncode == 0, result.stderr
    assert [wheel.name.split("-", 2)[2] for wheel in tmp_path.glob("*.whl")] == ["py3-none-any.whl"]
