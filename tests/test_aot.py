"""The kernel table compiled ahead of time for every architecture, with no GPU: nothing spills, everything fits.

What is compiled is what the ops would launch (`ahead_of_time.py`). Fast: the network's own layers in float16 on a large
frame for the oldest architecture and for Hopper, the longest kernels for all; and the trunk's in training. Slow: the
other layers everywhere, small frames, bfloat16 and other widths; the rest, float32 among it, only with
SRGAN_FAST_SOAK=1.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Iterator

import pytest
import torch
import triton
from ahead_of_time import FRAMES, NETWORK, TABLE, TRAINING, Built, Entry, Launch, build, launches

from srgan_fast import kernels
from srgan_fast.kernels.launch import SHARED_LIMIT_KIB

pytestmark = [
    pytest.mark.beside,
    pytest.mark.skipif(kernels.interpreting(), reason="TRITON_INTERPRET=1 leaves nothing to compile"),
]

ARCHITECTURES = sorted(SHARED_LIMIT_KIB)
# Which tensor cores a generation has, in the words of `Built.instructions`.
TENSOR_CORES = {80: "mma", 86: "mma", 89: "mma", 90: "wgmma", 100: "tcgen05", 120: "mma"}
# For int8 sm_100 gets the instructions of older generations from this compiler, and they are slow there.
INT8_CORES = {sm: "mma_int8" if sm == 100 else f"{name}_int8" for sm, name in TENSOR_CORES.items()}
# float32 is there for parity and not for speed; on small frames of 128 channels the compiler puts one pair of registers
# on the stack for another program on the multiprocessor.
FLOAT32_STACK_BYTES = 8
# By pointers and by descriptors: between them these two have every kernel.
FAST = (80, 90)
LONGEST = (
    "conv3x3: 64 to 64, residual",
    "tail: 5x5 from 256, x2",
    "conv3x3_int8: 64 to 64, residual, both",
)
WITHOUT_PRODUCTS = (
    *("frame_input_pointer", "pixelshuffle_prelu_pointer", "pixelshuffle_prelu_backward_pointer"),
    *("tail_sum_pointer", "quantise_int8_pointer", "statistics_pointer", "join_parts_pointer"),
    *("batchnorm_act_pointer", "gradient_parts_pointer", "gradient_pointer"),
    *("training_crops_pointer", "yuv_to_rgb_pointer", "rgb_to_yuv_pointer"),
)
# Equal to the bit by contract: a product and a sum in one instruction would round once less.
UNFUSED = ("quantise_int8_pointer", "conv3x3_int8_pointer", "yuv_to_rgb_pointer", "rgb_to_yuv_pointer")


def selected() -> list[object]:
    soak = os.environ.get("SRGAN_FAST_SOAK") == "1"
    chosen = []
    for sm in ARCHITECTURES:
        for entry in TABLE:
            for frame in FRAMES:
                for dtype in (torch.float16, torch.bfloat16, torch.float32):
                    usual = (frame == "large") + (dtype == torch.float16) + (entry in NETWORK)
                    if usual < 2 and not soak:
                        continue
                    if dtype == torch.float32 and not soak:
                        continue
                    layer = f"{entry.op}: {entry.name}"
                    name = f"sm_{sm}-{layer}-{frame}-{str(dtype).removeprefix('torch.')}"
                    marks = () if usual == 3 and (sm in FAST or layer in LONGEST) else pytest.mark.slow
                    chosen.append(pytest.param(entry, FRAMES[frame], dtype, sm, id=name, marks=marks))
    return chosen + list(selected_for_training(soak))


def selected_for_training(soak: bool) -> Iterator[object]:
    """Fast: the trunk's layers in bfloat16 on sm_90. Slow: all layers there, the trunk's on all; the rest in full."""
    for sm in ARCHITECTURES:
        for number, entry in enumerate(TRAINING):
            ((frame, batch),) = entry.frames.items()
            for dtype in (torch.bfloat16, torch.float16, torch.float32):
                usual = (sm == 90) + (number < 5)
                if not soak and (usual == 0 or dtype != torch.bfloat16):
                    continue
                name = f"sm_{sm}-{entry.op}: {entry.name}-{frame}-{str(dtype).removeprefix('torch.')}"
                marks = () if usual == 2 and dtype == torch.bfloat16 else pytest.mark.slow
                yield pytest.param(entry, batch, dtype, sm, id=name, marks=marks)


@pytest.mark.parametrize(("entry", "frame", "dtype", "sm"), selected())
def test_kernels_fit_the_architecture(entry: Entry, frame: tuple[int, int, int], dtype: torch.dtype, sm: int) -> None:
    for one in launches(entry, frame, dtype, sm):
        built = build(one, sm)
        said = f"{one.name} on sm_{sm}: {built}"
        assert built.local_bytes == 0, said
        if dtype == torch.float32:
            assert built.stack_bytes <= FLOAT32_STACK_BYTES, said
        else:
            assert built.stack_bytes == 0, said
            assert built.instructions["spill"] == 0, said
        assert built.shared_bytes <= SHARED_LIMIT_KIB[sm] * 1024, said
        assert 0 < built.registers <= 255, said
        check_instructions(one, built, dtype, sm, said)


def check_instructions(one: Launch, built: Built, dtype: torch.dtype, sm: int, said: str) -> None:
    cores = {*TENSOR_CORES.values(), *INT8_CORES.values()}
    # "wgmma" counts those of every type.
    counts = built.instructions | {"wgmma": built.instructions["wgmma"] - built.instructions["wgmma_int8"]}
    products = {name for name in cores if counts[name]}
    if one.name in UNFUSED:
        assert built.instructions["fma"] == 0, said
    if one.name == "conv3x3_int8_pointer":
        assert products == {INT8_CORES[sm]}, said
        assert built.instructions["cp_async"] >= 1, said
    elif one.name in WITHOUT_PRODUCTS or dtype == torch.float32:
        # float32 means float32: no tensor core multiplies that without rounding to TF32.
        assert not products, said
    else:
        assert products == {TENSOR_CORES[sm]}, said
        if one.name.endswith("_descriptor"):
            assert built.instructions["tma_load"] >= 2, said
            assert built.instructions["tma_store"] >= 1, said
            assert built.instructions["cp_async"] == 0, said
        elif one.constants.get("SIZE") != 1:
            # A 1x1 kernel from one block of inputs has a single step, and nothing to load ahead.
            assert built.instructions["cp_async"] >= 1, said


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("sm", ARCHITECTURES)
def test_each_architecture_takes_the_kernels_meant_for_it(sm: int, frame: str, dtype: torch.dtype) -> None:
    names = {
        f"{entry.op}: {entry.name}": [one.name for one in launches(entry, FRAMES[frame], dtype, sm)]
        for entry in NETWORK
    }
    modern = sm in (90, 100)
    conv3x3 = ["conv3x3_descriptor" if modern else "conv3x3_pointer"]
    assert names == {
        "frame_input: uint8": ["frame_input_pointer"],
        "head: 9x9 to 64": ["head_pointer"],
        "conv3x3: 64 to 64, PReLU": conv3x3,
        "conv3x3: 64 to 64, residual": conv3x3,
        "conv3x3_shuffle: 64 to 64, x2": ["conv3x3_shuffle_pointer"],
        "conv3x3: 64 to 256": conv3x3,
        "tail: 5x5 from 256, x2": ["tail_rows_pointer", "tail_sum_pointer"] if modern else ["tail_pointer"],
        "pixelshuffle_prelu: 64, x2": ["pixelshuffle_prelu_pointer"],
        "pixelshuffle_prelu: 64, x2, backward": ["pixelshuffle_prelu_backward_pointer"],
        "quantise_int8: 64": ["quantise_int8_pointer"],
        "conv3x3_int8: 64 to 64, PReLU, to int8": ["conv3x3_int8_pointer"],
        "conv3x3_int8: 64 to 64, residual, both": ["conv3x3_int8_pointer"],
        "conv3x3_int8: 64 to 64, x2, to int8": ["conv3x3_int8_pointer"],
        "conv3x3_int8: 64 to 256, PReLU": ["conv3x3_int8_pointer"],
    }


def test_every_kernel_is_in_the_table() -> None:
    """A kernel that no entry launches would never be compiled here."""
    seen = {
        one.name
        for entry in TABLE + TRAINING
        for sm in (80, 90)
        for one in launches(entry, entry.batch or FRAMES["large"], torch.float16, sm)
    }
    written = set()
    for op in kernels.OPS:
        module = importlib.import_module(f"{kernels.OPS[op]}.kernel")
        for name, value in vars(module).items():
            if isinstance(value, triton.runtime.JITFunction) and name.endswith(("_pointer", "_descriptor")):
                written.add(name)
    assert seen == written


@pytest.mark.parametrize(
    ("op", "name"),
    [
        ("training_crops", "x4"),
        ("training_crops", "x2, pairs"),
        ("yuv_to_rgb", "4:2:0, uint8"),
        ("rgb_to_yuv", "4:2:0, uint8"),
    ],
)
def test_others_compile(op: str, name: str) -> None:
    """The compiler is stricter than the interpreter: what is no layer of the network, with the fast tests too."""
    (entry,) = [entry for entry in TABLE if (entry.op, entry.name) == (op, name)]
    (one,) = launches(entry, FRAMES["small"], torch.float16, 90)
    built = build(one, 90)
    assert built.instructions["spill"] == 0
    check_instructions(one, built, torch.float16, 90, f"{one.name}: {built}")


def test_a_fused_product_and_sum_is_seen() -> None:
    """The count of them, on the int8 kernel without the option that forbids them."""
    entry = next(entry for entry in TABLE if entry.op == "conv3x3_int8")
    (one,) = launches(entry, FRAMES["large"], torch.float16, 80)
    assert one.constants["enable_fp_fusion"] is False
    allowed = dataclasses.replace(one, constants=one.constants | {"enable_fp_fusion": True})
    assert build(allowed, 80).instructions["fma"] > 0


def test_a_spill_is_seen() -> None:
    """The reading of the machine code, on a launch that has more sums than registers."""
    entry = next(entry for entry in TABLE if entry.name == "128 to 128, PReLU")
    (one,) = launches(entry, FRAMES["large"], torch.float16, 80)
    crowded = dataclasses.replace(one, constants=one.constants | {"TH": 16, "BN": 128, "num_warps": 4})
    built = build(crowded, 80)
    assert built.stack_bytes > 0
    assert built.instructions["spill"] > 0
