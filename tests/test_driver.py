"""The CUDA driver by ctypes, with no GPU: layouts against CUDA's own header, and what is said to a driver."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton

from srgan_fast.kernels import cubins, driver
from srgan_fast.kernels.driver import DriverError, Gpu
from srgan_fast.kernels.nvrtc import CompileError, Cubin, Specialisation

SOURCE = Specialisation("conv3x3/sm90.cu", "some<kernel>")
ILLEGAL_ADDRESS, INVALID_VALUE = 700, 1
CONTEXT, FUNCTION, STREAM = 0xC0, 0xF0, 0x50


class Parameters(ctypes.Structure):
    _fields_ = (("map", ctypes.c_uint8 * 128), ("count", ctypes.c_int), ("_", ctypes.c_uint8 * 60))


class Noting:
    """A driver that notes calls, fills what it is asked for, and fails where told."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.current: list[int] = []
        self.fails: dict[str, int] = {}
        self.launched: dict[str, Any] = {}
        self.capturing = 0

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            self.calls.append((name, *arguments))
            return self.fails.get(name) or 0

        return call

    def names(self) -> list[str]:
        return [name for name, *_ in self.calls]

    def cuGetErrorName(self, status: int, said: Any) -> int:  # noqa: N802
        said._obj.value = {ILLEGAL_ADDRESS: b"CUDA_ERROR_ILLEGAL_ADDRESS"}.get(status, b"CUDA_ERROR_INVALID_VALUE")
        return 0

    def cuGetErrorString(self, status: int, said: Any) -> int:  # noqa: N802
        said._obj.value = b"it is told in words"
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> int:  # noqa: N802
        context._obj.value = CONTEXT
        return 0

    def cuCtxPushCurrent_v2(self, context: Any) -> int:  # noqa: N802
        self.current.append(context.value)
        return 0

    def cuCtxPopCurrent_v2(self, context: Any) -> int:  # noqa: N802
        self.current.pop()
        return 0

    def cuStreamIsCapturing(self, stream: int, capturing: Any) -> int:  # noqa: N802
        capturing._obj.value = self.capturing
        return 0

    def cuModuleGetFunction(self, function: Any, module: Any, name: bytes) -> int:  # noqa: N802
        self.calls.append(("cuModuleGetFunction", name))
        function._obj.value = FUNCTION
        return 0

    def cuLaunchKernelEx(self, config: Any, function: int, parameters: Any, extra: Any) -> int:  # noqa: N802
        told = config._obj
        attributes = [(told.attrs[i].id, told.attrs[i].value) for i in range(told.numAttrs)]
        self.launched = {
            "grid": (told.gridDimX, told.gridDimY, told.gridDimZ),
            "block": (told.blockDimX, told.blockDimY, told.blockDimZ),
            "shared": told.sharedMemBytes,
            "stream": told.hStream,
            "attributes": attributes,
            "function": function,
            "address": parameters[0],
            "parameters": ctypes.string_at(parameters[0], ctypes.sizeof(Parameters)),
            "contexts": list(self.current),
            "extra": extra,
        }
        return self.fails.get("cuLaunchKernelEx") or 0


@pytest.fixture
def noting(monkeypatch: pytest.MonkeyPatch) -> Noting:
    """The noting driver in the place of the system's, and a torch that has one GPU."""
    fake = Noting()
    monkeypatch.setattr(driver, "_library", lambda: fake)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    properties = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=STREAM))
    monkeypatch.setattr(cubins, "get", lambda sources: [Cubin(b"image", "symbol", "") for _ in sources])
    return fake


@pytest.fixture
def gpu(noting: Noting) -> Gpu:
    return Gpu(torch.device("cuda"))


# --- layouts

FIELDS = [
    *(("CUlaunchConfig", name, driver.LaunchConfig) for name, _ in driver.LaunchConfig._fields_),
    ("CUlaunchAttribute", "id", driver.LaunchAttribute),
    ("CUlaunchAttribute", "value", driver.LaunchAttribute),
]
CONSTANTS = {
    "CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION": driver._PROGRAMMATIC_STREAM_SERIALIZATION,
    "CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES": driver._MAX_DYNAMIC_SHARED_SIZE_BYTES,
    "CU_TENSOR_MAP_DATA_TYPE_UINT8": driver._ELEMENTS[torch.int8],
    "CU_TENSOR_MAP_DATA_TYPE_UINT16": driver._ELEMENTS[torch.uint16],
    "CU_TENSOR_MAP_DATA_TYPE_INT32": driver._ELEMENTS[torch.int32],
    "CU_TENSOR_MAP_DATA_TYPE_FLOAT16": driver._ELEMENTS[torch.float16],
    "CU_TENSOR_MAP_DATA_TYPE_FLOAT32": driver._ELEMENTS[torch.float32],
    "CU_TENSOR_MAP_DATA_TYPE_BFLOAT16": driver._ELEMENTS[torch.bfloat16],
    "CU_TENSOR_MAP_SWIZZLE_NONE": driver._SWIZZLES[0],
    "CU_TENSOR_MAP_SWIZZLE_32B": driver._SWIZZLES[32],
    "CU_TENSOR_MAP_SWIZZLE_64B": driver._SWIZZLES[64],
    "CU_TENSOR_MAP_SWIZZLE_128B": driver._SWIZZLES[128],
    "CU_TENSOR_MAP_L2_PROMOTION_L2_128B": driver._L2_PROMOTION_128B,
    "CU_TENSOR_MAP_INTERLEAVE_NONE": 0,
    "CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE": 0,
    "sizeof(CUtensorMap)": driver._MAP_BYTES,
    "sizeof(CUlaunchConfig)": ctypes.sizeof(driver.LaunchConfig),
    "sizeof(CUlaunchAttribute)": ctypes.sizeof(driver.LaunchAttribute),
    f"{driver._ALIGNMENT} % _Alignof(CUtensorMap)": 0,
    **{f"offsetof({c}, {name})": getattr(structure, name).offset for c, name, structure in FIELDS},
}


def test_layouts_and_numbers_are_those_of_the_header(tmp_path: Path) -> None:
    header = Path(triton.__file__).parent / "backends" / "nvidia" / "include" / "cuda.h"
    compiler = shutil.which("gcc") or shutil.which("cc")
    if not header.is_file() or compiler is None:
        pytest.skip("needs a C compiler and cuda.h, which the Linux package of triton has")
    lines = [f'printf("%d\\n", (int)({name}));' for name in CONSTANTS]
    program = f'#include <stddef.h>\n#include <stdio.h>\n#include "{header}"\nint main(void) {{ {" ".join(lines)} }}\n'
    (tmp_path / "layouts.c").write_text(program)
    subprocess.run([compiler, "-o", tmp_path / "layouts", tmp_path / "layouts.c"], check=True)
    said = subprocess.run([tmp_path / "layouts"], capture_output=True, text=True, check=True).stdout
    assert dict(zip(CONSTANTS, map(int, said.split()), strict=True)) == CONSTANTS


def test_memory_of_parameters_is_aligned_and_their_own() -> None:
    blocks = [driver.aligned(size) for size in (1, 64, 128, 500) for _ in range(5)]
    assert all(ctypes.addressof(block) % driver._ALIGNMENT == 0 for block in blocks)
    assert [len(block) for block in blocks[::5]] == [1, 64, 128, 500]


# --- where it can be used


def test_without_a_gpu_one_line_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    reason = driver.why_not()
    assert reason is not None
    assert all(text and "\n" not in text for text in reason)


@pytest.mark.parametrize("trouble", ["missing", "without a function", "old"])
def test_a_driver_that_will_not_do_is_told_with_a_cure(trouble: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library = SimpleNamespace(**{name: SimpleNamespace() for name in driver._FUNCTIONS})
    if trouble == "without a function":
        del library.cuLaunchKernelEx

    class Version:
        def __call__(self, version: Any) -> int:
            version._obj.value = 12020
            return 0

    library.cuDriverGetVersion = Version()

    def load(name: str) -> Any:
        if trouble == "missing":
            raise OSError(name)
        return library

    monkeypatch.setattr(driver, "_library", driver._library.__wrapped__)
    monkeypatch.setattr(ctypes, "CDLL", load)
    reason = driver.why_not()
    assert reason is not None
    words = {"missing": "libcuda.so.1", "without a function": "cuLaunchKernelEx", "old": "CUDA 12.2"}
    assert words[trouble] in reason[0]
    assert "545" in reason[1]


# --- what is said to it


def test_a_kernel_is_loaded_once_and_may_use_its_shared_memory(gpu: Gpu, noting: Noting) -> None:
    kernel = gpu.kernel(SOURCE, 200_000)
    assert gpu.kernel(SOURCE, 200_000) is kernel
    assert noting.names().count("cuModuleLoadData") == 1
    assert ("cuModuleGetFunction", b"symbol") in noting.calls
    (attribute,) = [call for call in noting.calls if call[0] == "cuFuncSetAttribute"]
    assert attribute[2:] == (8, 200_000)
    assert attribute[1].value == FUNCTION
    assert not noting.current


def test_a_launch_says_all_and_copies_the_parameters(gpu: Gpu, noting: Noting) -> None:
    parameters = Parameters(count=7)
    kernel = gpu.kernel(SOURCE, 1000)
    gpu.launch(kernel, (3, 4, 1), 384, parameters, what="conv3x3")
    said = noting.launched
    assert (said["grid"], said["block"]) == ((3, 4, 1), (384, 1, 1))
    assert (said["shared"], said["stream"], said["function"]) == (1000, STREAM, FUNCTION)
    assert said["attributes"] == [(6, 1)]
    gpu.launch(kernel, (3, 4, 1), 384, parameters, what="conv3x3", overlap=False)
    assert noting.launched["attributes"] == []
    assert said["address"] % 64 == 0
    assert said["parameters"] == bytes(parameters)
    assert said["contexts"] == [CONTEXT]
    assert said["extra"] is None


def test_another_thread_launches_in_the_same_context(gpu: Gpu, noting: Noting) -> None:
    kernel = gpu.kernel(SOURCE, 1000)
    thread = threading.Thread(target=lambda: gpu.launch(kernel, (1, 1, 1), 128, Parameters()))
    thread.start()
    thread.join()
    assert noting.launched["contexts"] == [CONTEXT]


def test_a_map_is_encoded_as_told(gpu: Gpu, noting: Noting) -> None:
    encoded = gpu.tensor_map(0x1000, torch.bfloat16, (64, 10, 9), (128, 1280), (64, 8, 4), 128)
    (call,) = [call for call in noting.calls if call[0] == "cuTensorMapEncodeTiled"]
    _, memory, element, rank, address, sizes, strides, box, steps, *modes = call
    assert ctypes.addressof(memory) % 64 == 0
    assert (element, rank, address, len(encoded)) == (9, 3, 0x1000, 128)
    assert (list(sizes), list(strides), list(box), list(steps)) == ([64, 10, 9], [128, 1280], [64, 8, 4], [1, 1, 1])
    assert modes == [0, 3, 2, 0]


# --- errors


def test_a_refused_map_is_told_with_its_numbers(gpu: Gpu, noting: Noting) -> None:
    noting.fails["cuTensorMapEncodeTiled"] = INVALID_VALUE
    with pytest.raises(DriverError, match=r"\(64, 10\).*\(999,\).*CUDA_ERROR_INVALID_VALUE, it is told in words"):
        gpu.tensor_map(0x1000, torch.float16, (64, 10), (999,), (64, 8), 128)


@pytest.mark.parametrize(("status", "words"), [(INVALID_VALUE, "cuLaunchKernelEx failed"), (ILLEGAL_ADDRESS, "before")])
def test_a_refused_launch_names_op_and_grid_and_whose_fault_it_is(
    status: int, words: str, gpu: Gpu, noting: Noting
) -> None:
    kernel = gpu.kernel(SOURCE, 1000)
    noting.fails["cuLaunchKernelEx"] = status
    with pytest.raises(DriverError, match=rf"conv3x3 of 1x5x5 \(grid \(1, 2, 3\), 384 threads.*{words}"):
        gpu.launch(kernel, (1, 2, 3), 384, Parameters(), what="conv3x3 of 1x5x5")
    assert not noting.current


def test_check_names_what_failed_and_never_waits_in_a_capture(gpu: Gpu, noting: Noting) -> None:
    gpu.check("conv3x3 of 1x5x5")
    assert noting.calls[-1] == ("cuStreamSynchronize", STREAM)
    noting.fails["cuStreamSynchronize"] = ILLEGAL_ADDRESS
    with pytest.raises(DriverError, match=r"conv3x3 of 1x5x5: .*CUDA_ERROR_ILLEGAL_ADDRESS"):
        gpu.check("conv3x3 of 1x5x5")
    noting.capturing = 1
    gpu.check("conv3x3 of 1x5x5")


def test_prepare_leaves_errors_to_the_kernel_that_has_them(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    def get(sources: object) -> list[Cubin]:
        raise CompileError("no such kernel")

    monkeypatch.setattr(cubins, "get", get)
    gpu.prepare([SOURCE])
    with pytest.raises(CompileError, match="no such kernel"):
        gpu.kernel(SOURCE, 0)
