"""Ways to break a kernel, each by one change of its text, and what lets an op launch a broken copy.

A copy of an op's kernel (and of the device code that the convolutions share) goes into a folder of its own, because
Triton reads the source of a kernel from its file. Not a test itself: `test_mutations.py` has the ops judge them, and
`test_mutations_network.py` a network's self-check.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from srgan_fast import kernels
from srgan_fast.kernels import implicit_gemm, moments


@dataclass(frozen=True)
class Mutation:
    """One change of the text of an op's kernel, or with `shared` of what it imports; and the case that shows it."""

    name: str
    op: str
    case: str
    old: str
    new: str
    shared: bool = False
    sm: int = 80


CONV = "1x9x17, 64 to 64, slopes channel"
CONV_SUM = "1x7x5, 16 to 16, slopes -0.5, residual"
CONV_TWO = "2x8x16, 64 to 64, residual"
SHUFFLE = "2x3x5, 16 to 16, x2"
HEAD = "1x7x6, 9x9 to 36"
TAIL = "2x6x5x64, 5x5, x2, float32"
PRELU = "1x2x3, 16 channels, x3"
INT8 = "1x9x17, 64 to 64, slopes, to int8"
INT8_SHUFFLE = "1x3x4, 32 to 20, x3, slopes, both"
INT8_BOTH = "2x8x16, 64 to 64, residual, both"
INT8_WIDE = "1x5x9, 64 to 64, slopes, residual, to float32"
INT8_LARGEST = "1x4x6, 112 to 48, to float32, extreme"
STATS = "3x5x9, 32 to 48, stride 2"
STATS_BIAS = "2x6x4, 20 to 36, stride 2, bias 0"
STATS_HARD = "2x10x11, 16 to 16, bias 30, values of 0.1"
NORM = "2x9x7, 64 channels, slope channel, skip"
NORM_SHARED = "3x3x5, 64 channels, slope shared"
NORM_LEAKY = "2x7x6, 36 channels, slope 0.2"
NORM_HARD = "2x5x6, 16 channels, slope channel, mean 30"
CROPS = "x4, two turns"

# Multi-line changes move whole lines, as an editor would.
_RESIDUAL_LAST = """\
    acc = biased_prelu(acc, b_ptr, s_ptr, outputs, COUT, PRELU)
    offsets = (rows * W + columns)[:, None] * COUT + outputs[None, :]
    kept = valid[:, None] & (outputs < COUT)[None, :]
    if RESIDUAL:
        acc += tl.load(r_ptr + frame * COUT + offsets, mask=kept, other=0.0).to(tl.float32)
"""
_RESIDUAL_FIRST = """\
    offsets = (rows * W + columns)[:, None] * COUT + outputs[None, :]
    kept = valid[:, None] & (outputs < COUT)[None, :]
    if RESIDUAL:
        acc += tl.load(r_ptr + frame * COUT + offsets, mask=kept, other=0.0).to(tl.float32)
    acc = biased_prelu(acc, b_ptr, s_ptr, outputs, COUT, PRELU)
"""
_DESCRIPTOR_LAST = """\
        acc = biased_prelu(acc, b_ptr, s_ptr, output + tl.arange(0, BN), COUT, PRELU)
        if RESIDUAL:
            acc += r_desc.load([frame, row, column, output]).reshape(TH * TW, BN).to(tl.float32)
"""
_DESCRIPTOR_FIRST = """\
        if RESIDUAL:
            acc += r_desc.load([frame, row, column, output]).reshape(TH * TW, BN).to(tl.float32)
        acc = biased_prelu(acc, b_ptr, s_ptr, output + tl.arange(0, BN), COUT, PRELU)
"""
_ROUNDED_ONCE = (
    """\
    v = acc.to(tl.float32) * tl.load(g_ptr + outputs, mask=channels < C, other=0.0)[None, :]
    v = v + tl.load(b_ptr + outputs, mask=channels < C, other=0.0)[None, :]
""",
    """\
    v = acc.to(tl.float64) * tl.load(g_ptr + outputs, mask=channels < C, other=0.0)[None, :]
    v = (v + tl.load(b_ptr + outputs, mask=channels < C, other=0.0)[None, :]).to(tl.float32)
""",
)
_HALF_UP = ("((v + 12582912.0) - 12582912.0).to(tl.int8)", "tl.floor(v + 0.5).to(tl.int8)")
_CUT_OFF = ("((v + 12582912.0) - 12582912.0).to(tl.int8)", "v.to(tl.int8)")
_NO_CLAMP = ("    v = tl.minimum(tl.maximum(v, -127.0), 127.0)\n", "")
_ONE_SLOPE = ("acc * slopes)", "acc * tl.where((outputs == 3)[None, :], 0.9, slopes))")
_TAP = ("for step in range(KH * KW * blocks):", "for step in range((KH * KW - 1) * blocks):")
ROW = ("(rows < H) & (columns < W)", "(rows < H - 1) & (columns < W)")
_COLUMN = ("(rows < H) & (columns < W)", "(rows < H) & (columns < W - 1)")
# Left of a row lies the row above; but left of the first lies memory of others, which stays unread.
_PADDING = ("(y >= 0) & (y < H) & (x >= 0) & (x < W)", "(y >= 0) & (y < H) & ((x >= 0) | (y > 0)) & (x < W)")
OUTSIDE = ("(rows < H) & (columns < W)", "(rows <= H) & (columns < W)")

_SKIP_FIRST = (
    """\
    if ACT != NONE:
        z = tl.where(z >= 0, z, z * slopes_of(s_ptr, slope, c, C, ACT)[None, :])
    if SKIP:
        z += tl.load(r_ptr + offsets, mask=kept, other=0.0).to(tl.float32)
""",
    """\
    if SKIP:
        z += tl.load(r_ptr + offsets, mask=kept, other=0.0).to(tl.float32)
    if ACT != NONE:
        z = tl.where(z >= 0, z, z * slopes_of(s_ptr, slope, c, C, ACT)[None, :])
""",
)
_SUBPIXEL = (
    """\
    y = rows[:, None] * R + ((outputs % (R * R)) // R)[None, :]
    x = columns[:, None] * R + (outputs % R)[None, :]
""",
    """\
    y = rows[:, None] * R + (outputs % R)[None, :]
    x = columns[:, None] * R + ((outputs % (R * R)) // R)[None, :]
""",
)

MUTATIONS = (
    Mutation("one tap dropped", "conv3x3", CONV, *_TAP, shared=True),
    Mutation("one row unwritten", "conv3x3", CONV, *ROW, shared=True),
    Mutation("one column unwritten", "conv3x3", CONV, *_COLUMN, shared=True),
    Mutation("one wrong slope", "conv3x3", CONV, *_ONE_SLOPE, shared=True),
    Mutation("no padding at the left", "conv3x3", CONV, *_PADDING, shared=True),
    Mutation(
        "half of the inputs",
        "conv3x3",
        "1x4x5, 128 to 96, slopes channel",
        "(step % blocks) * BK + tl.arange(0, BK)",
        "tl.arange(0, BK)",
        True,
    ),
    Mutation("one wrong channel", "conv3x3", CONV, "COUT + outputs[None, :]", "COUT + (outputs ^ 1)[None, :]"),
    Mutation("residual before the activation", "conv3x3", CONV_SUM, _RESIDUAL_LAST, _RESIDUAL_FIRST),
    Mutation("residual left out", "conv3x3", CONV_TWO, "    if RESIDUAL:", "    if RESIDUAL and not RESIDUAL:"),
    Mutation("second frame reads the first", "conv3x3", CONV_TWO, "x_ptr + frame * CIN", "x_ptr"),
    Mutation("second frame written to the first", "conv3x3", CONV_TWO, "y_ptr + frame * COUT", "y_ptr"),
    Mutation("descriptors: one tap dropped", "conv3x3", CONV, "range(9)", "range(8)", sm=90),
    Mutation(
        "descriptors: taps transposed",
        "conv3x3",
        CONV,
        "row + tap // 3 - 1, column + tap % 3 - 1",
        "row + tap % 3 - 1, column + tap // 3 - 1",
        sm=90,
    ),
    Mutation("descriptors: last tile unwritten", "conv3x3", CONV, "TILES, PROGRAMS)", "TILES - 1, PROGRAMS)", sm=90),
    Mutation("descriptors: one wrong slope", "conv3x3", CONV, *_ONE_SLOPE, shared=True, sm=90),
    Mutation(
        "descriptors: residual before the activation", "conv3x3", CONV_SUM, _DESCRIPTOR_LAST, _DESCRIPTOR_FIRST, sm=90
    ),
    Mutation("one tap dropped", "conv3x3_shuffle", SHUFFLE, *_TAP, shared=True),
    Mutation("one row unwritten", "conv3x3_shuffle", SHUFFLE, *ROW, shared=True),
    Mutation(
        "shuffle transposed",
        "conv3x3_shuffle",
        SHUFFLE,
        "rows * R + subpixel // R, columns * R + subpixel % R",
        "rows * R + subpixel % R, columns * R + subpixel // R",
    ),
    Mutation(
        "slope of the sub-pixel",
        "conv3x3_shuffle",
        SHUFFLE,
        "s_ptr + channels, mask=channels < C",
        "s_ptr + outputs // (R * R), mask=channels < C",
    ),
    Mutation("wrong bias", "conv3x3_shuffle", SHUFFLE, "b_ptr + outputs", "b_ptr + channels"),
    Mutation("one row of taps dropped", "head", HEAD, "for row in range(SIZE):", "for row in range(SIZE - 1):"),
    Mutation("one row unwritten", "head", HEAD, *ROW, shared=True),
    Mutation("one wrong slope", "head", HEAD, *_ONE_SLOPE, shared=True),
    Mutation("colours swapped", "head", HEAD, "(k % 4)[None, :]", "((k % 4) ^ 1)[None, :]"),
    Mutation("one row written outside of the frame", "head", HEAD, *OUTSIDE, shared=True),
    Mutation("one tap dropped", "tail", TAIL, *_TAP, shared=True),
    Mutation("one row unwritten", "tail", TAIL, *ROW, shared=True),
    Mutation(
        "shuffle transposed",
        "tail",
        TAIL,
        *_SUBPIXEL,
    ),
    Mutation("blue and red swapped", "tail", TAIL, "* 3 + colour[None, :]", "* 3 + (2 - colour)[None, :]"),
    Mutation("no clamp at one", "tail", TAIL, "tl.PropagateNan.ALL), 1.0,", "tl.PropagateNan.ALL), 9.0,"),
    Mutation("missing rounding of uint8", "tail", "1x5x7x64, 5x5, x2, uint8", "v * LEVELS + 0.5", "v * LEVELS"),
    Mutation("missing rounding of uint16", "tail", "1x5x7x64, 5x5, x2, uint16, tanh", "v * LEVELS + 0.5", "v * LEVELS"),
    Mutation(
        "no tanh of negative values",
        "tail",
        "1x9x17x256, 5x5, x2, float32, tanh",
        "tl.where(acc >= 0, 1.0, -1.0)",
        "tl.where(acc >= 0, 1.0, 1.0)",
    ),
    Mutation(
        "base of the next colour",
        "tail",
        "1x4x7x64, 3x3, x4, float32, base",
        "place * 4 + colour[None, :]",
        "place * 4 + (colour ^ 1)[None, :]",
    ),
    Mutation(
        "two kernels: one row of sums dropped",
        "tail",
        TAIL,
        "for row in range(SIZE):",
        "for row in range(SIZE - 1):",
        sm=90,
    ),
    Mutation(
        "two kernels: sums of the wrong row", "tail", TAIL, "rows + row - SIZE // 2", "rows - row + SIZE // 2", sm=90
    ),
    Mutation(
        "two kernels: last pixels unwritten",
        "tail",
        TAIL,
        "columns, p < H * W, outputs",
        "columns, p < H * W - 1, outputs",
        sm=90,
    ),
    Mutation(
        "two kernels: missing rounding", "tail", "1x5x7x64, 5x5, x2, uint8", "v * LEVELS + 0.5", "v * LEVELS", sm=90
    ),
    Mutation(
        "offset left out",
        "frame_input",
        "2x13x7, uint8",
        "v = v * gain + tl.load(o_ptr + c, mask=c < 3, other=0.0)[None, :]",
        "v = v * gain",
    ),
    Mutation(
        "fourth channel unwritten",
        "frame_input",
        "2x13x7, uint8",
        "to(x_ptr.dtype.element_ty), mask=(p < pixels)[:, None])",
        "to(x_ptr.dtype.element_ty), mask=colour)",
    ),
    Mutation(
        "last pixel unwritten",
        "frame_input",
        "2x13x7, uint8",
        "mask=(p < pixels)[:, None])",
        "mask=(p < pixels - 1)[:, None])",
    ),
    Mutation("one tap dropped", "conv3x3_int8", INT8, *_TAP, shared=True),
    Mutation("one row unwritten", "conv3x3_int8", INT8, *ROW, shared=True),
    Mutation("one row written outside of the frame", "conv3x3_int8", INT8, *OUTSIDE, shared=True),
    Mutation("sums in 16 bits", "conv3x3_int8", INT8_LARGEST, "acc.to(tl.float32)", "acc.to(tl.int16).to(tl.float32)"),
    Mutation("product and sum rounded once", "conv3x3_int8", INT8_WIDE, *_ROUNDED_ONCE),
    Mutation("one scale for all channels", "conv3x3_int8", INT8, "g_ptr + outputs,", "g_ptr + outputs * 0,"),
    Mutation("bias of the sub-pixel", "conv3x3_int8", INT8_SHUFFLE, "b_ptr + outputs", "b_ptr + channels"),
    Mutation("residual left out", "conv3x3_int8", INT8_WIDE, "    if RESIDUAL:", "    if RESIDUAL and not RESIDUAL:"),
    Mutation(
        "shuffle transposed",
        "conv3x3_int8",
        INT8_SHUFFLE,
        "rows * R + subpixel // R, columns * R + subpixel % R",
        "rows * R + subpixel % R, columns * R + subpixel // R",
    ),
    Mutation(
        "second result from the value before its rounding",
        "conv3x3_int8",
        INT8_BOTH,
        "to_int8(rounded.to(tl.float32) * inverse)",
        "to_int8(v * inverse)",
    ),
    Mutation(
        "second result of the first frame", "conv3x3_int8", INT8_BOTH, "q_ptr + offsets", "q_ptr + offsets - frame * C"
    ),
    Mutation("half rounded up", "conv3x3_int8", "1x5x8, 16 to 16, half steps", *_HALF_UP, shared=True),
    Mutation("cut off", "quantise_int8", "1x5x7, 16 channels, half steps", *_CUT_OFF, shared=True),
    Mutation("half rounded up", "quantise_int8", "1x5x7, 16 channels, half steps", *_HALF_UP, shared=True),
    Mutation(
        "down to -128", "quantise_int8", "1x5x7, 16 channels, half steps", "-127.0), 127.0", "-128.0), 127.0", True
    ),
    Mutation("no clamp", "quantise_int8", "1x3x5, 20 channels, values of 100 by 0.613", *_NO_CLAMP, shared=True),
    Mutation(
        "last values unwritten",
        "quantise_int8",
        "2x9x17, 64 channels, values of 1 by 61.7",
        "to_int8(v), mask=p < values",
        "to_int8(v), mask=p < values - 1",
    ),
    Mutation("one sample dropped", "training_crops", CROPS, "range(4 * SCALE)", "range(4 * SCALE - 1)"),
    Mutation("half rounded down", "training_crops", "x4, ties", "(1 << (SHIFT - 1))", "(1 << (SHIFT - 1)) - 1"),
    Mutation(
        "no rounding between the passes",
        "training_crops",
        CROPS,
        "* rounded(rows, SHIFT), 1), SHIFT)",
        "* rows // (1 << SHIFT), 1), SHIFT)",
    ),
    Mutation("no clamp", "training_crops", "x4, black and white", ">> SHIFT, 0), 255)", ">> SHIFT, -99), 999)"),
    Mutation("six turns", "training_crops", CROPS, "turn >= 4", "turn >= 6"),
    Mutation("turned the other way", "training_crops", CROPS, "turn % 4", "(8 - turn) % 4"),
    Mutation("border one pixel in", "training_crops", CROPS, "height - 1)", "height - 2)"),
    Mutation("one plane for all", "training_crops", CROPS, "(c * height + row)", "row"),
    Mutation("one image for all", "training_crops", CROPS, "tl.load(d_ptr + crop * 4) * 3", "0 * crop"),
    Mutation("last HR pixel unwritten", "training_crops", CROPS, "(p < CROP * CROP)", "(p < CROP * CROP - 1)"),
    Mutation("last LR value unwritten", "training_crops", CROPS, "size * size * 3\n", "size * size * 3 - 1\n"),
    Mutation(
        "product with an inverse",
        "training_crops",
        "x4, inside of an image",
        "tl.div_rn(v, tl.full(v.shape, 127.5, tl.float32))",
        "v * (1.0 / 127.5)",
    ),
    Mutation(
        "pairs: one corner for both",
        "training_crops",
        "x2, pairs, every turn",
        "SCALE if PAIRS else 1",
        "SCALE // SCALE",
    ),
    Mutation("pairs: LR from HR", "training_crops", "x2, pairs, every turn", "low(p_ptr, l_ptr", "low(p_ptr, t_ptr"),
    Mutation("shuffle transposed", "pixelshuffle_prelu", PRELU, "(y % R) * R + x % R", "(x % R) * R + y % R"),
    Mutation(
        "slope of the next channel",
        "pixelshuffle_prelu",
        PRELU,
        "v * tl.load(s_ptr + c, mask",
        "v * tl.load(s_ptr + (c ^ 1), mask",
    ),
    Mutation("one tap dropped", "conv3x3_stats", STATS, "range(9 * blocks)", "range(8 * blocks)"),
    Mutation(
        "taps transposed", "conv3x3_stats", STATS, "(outputs * 9 + tap)", "(outputs * 9 + tap % 3 * 3 + tap // 3)"
    ),
    Mutation(
        "half of the inputs",
        "conv3x3_stats",
        "1x5x3, 128 to 80",
        "(step % blocks) * BK + tl.arange(0, BK)",
        "tl.arange(0, BK)",
    ),
    Mutation("no stride across", "conv3x3_stats", STATS, "p % WO * STRIDE - 1", "p % WO - 1"),
    Mutation("no padding above", "conv3x3_stats", "2x9x7, 64 to 64", "(y >= 0)", "((y >= 0) | (p >= HO * WO))"),
    Mutation("second frame reads the first", "conv3x3_stats", STATS, "p // (HO * WO) * H", "0 * H"),
    Mutation("bias left out", "conv3x3_stats", STATS_BIAS, "    if BIAS:", "    if BIAS and not BIAS:"),
    Mutation("last pixel unwritten", "conv3x3_stats", STATS, "valid = p < PIXELS", "valid = p < PIXELS - 1"),
    Mutation("written beyond the end", "conv3x3_stats", STATS, "valid = p < PIXELS", "valid = p <= PIXELS"),
    Mutation("statistics of the rest of a block", "conv3x3_stats", STATS_BIAS, "kept, first,", "acc == acc, first,"),
    Mutation(
        "sums of squares that cancel",
        "conv3x3_stats",
        STATS_HARD,
        "tl.sum(apart * apart, 0) - left * left / count",
        "tl.sum(tl.where(kept, v * v, 0.0), 0) - mean * mean * count",
        True,
    ),
    Mutation("parts joined as if alike", "conv3x3_stats", STATS_HARD, " + count * apart * apart", "", True),
    Mutation(
        "the last part counts as a full one",
        "conv3x3_stats",
        STATS_HARD,
        "PIXELS - i * BP, BP)",
        "BP + 0 * i, BP)",
        True,
    ),
    Mutation("skip left out", "batchnorm_act", NORM, "    if SKIP:", "    if SKIP and not SKIP:"),
    Mutation("skip before the activation", "batchnorm_act", NORM, *_SKIP_FIRST),
    Mutation("slope of the next channel", "batchnorm_act", NORM, "tl.load(s_ptr + c,", "tl.load(s_ptr + (c ^ 1),"),
    Mutation(
        "shared slope of another channel", "batchnorm_act", NORM_SHARED, "+ tl.load(s_ptr)", "+ tl.load(s_ptr) * 0"
    ),
    Mutation("no slope", "batchnorm_act", NORM_LEAKY, "if ACT != NONE", "if ACT > CONSTANT"),
    Mutation("gain left out", "batchnorm_act", NORM, "unit * gain[None, :] +", "unit +"),
    Mutation("shift of the next channel", "batchnorm_act", NORM, "tl.load(b_ptr + c,", "tl.load(b_ptr + (c ^ 1),"),
    Mutation("variance for deviation", "batchnorm_act", NORM, "1.0 / tl.sqrt_rn(", "1.0 / ("),
    Mutation("last pixel unwritten", "batchnorm_act", NORM, "(p < PIXELS)[:, None]", "(p < PIXELS - 1)[:, None]"),
)

BACKWARD = (
    Mutation("no share of the mean", "batchnorm_act", NORM, "dz - mean_dz[None, :] -", "dz -"),
    Mutation("no share of the variance", "batchnorm_act", NORM, " - unit * mean_unit[None, :]", ""),
    Mutation("sums for means", "batchnorm_act", NORM, "mask=c < C, other=0.0) / PIXELS", "mask=c < C, other=0.0)"),
    Mutation(
        "no slope",
        "batchnorm_act",
        NORM_LEAKY,
        "tl.where(z > 0, dz, dz * slopes_of",
        "tl.where(z > -9, dz, dz * slopes_of",
    ),
    Mutation(
        "no slope in the sums",
        "batchnorm_act",
        NORM_LEAKY,
        "dz = tl.where(z > 0, dy, dy *",
        "dz = tl.where(z > -9, dy, dy *",
    ),
    Mutation(
        "slopes from positive values",
        "batchnorm_act",
        NORM,
        "tl.where(z > 0, 0.0, dy * z)",
        "tl.where(z > 0, dy * z, 0.0)",
    ),
    Mutation(
        "gain of the values before the mean", "batchnorm_act", NORM_HARD, "tl.sum(dz * unit, 0)", "tl.sum(dz * z, 0)"
    ),
    Mutation("parts of one block", "batchnorm_act", NORM, "parts_ptr + tl.program_id(0) * C + c", "parts_ptr + c"),
    Mutation("last pixel left out", "batchnorm_act", NORM, "(p < PIXELS)[:, None]", "(p < PIXELS - 1)[:, None]"),
    Mutation(
        "statistics of the rest of a block", "batchnorm_act", NORM_HARD, "store_part(v, kept,", "store_part(v, v == v,"
    ),
    Mutation("shuffle transposed", "pixelshuffle_prelu", PRELU, "(y % R) * R + x % R", "(x % R) * R + y % R"),
    Mutation(
        "no slope",
        "pixelshuffle_prelu",
        PRELU,
        "tl.where(v > 0, dy, dy * tl.load(s_ptr + c, mask=c < C, other=0.0)[None, :])",
        "dy",
    ),
    Mutation(
        "slopes from positive values",
        "pixelshuffle_prelu",
        PRELU,
        "tl.where(v > 0, 0.0, dy * v)",
        "tl.where(v > 0, dy * v, 0.0)",
    ),
    Mutation(
        "parts of one frame",
        "pixelshuffle_prelu",
        "2x9x7, 64 channels, x2",
        "tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)",
        "tl.program_id(0)",
    ),
)

everywhere = pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.interpreter), pytest.param("cuda", marks=pytest.mark.gpu)]
)
_counter = itertools.count()

Plant = Callable[..., None]


def source(op: str, old: str = "", new: str = "", shared: bool = False) -> dict[str, str]:
    """The text of an op's kernel and of the device code that it imports, by module, with one change or none."""
    kernel = f"{kernels.load(op).__name__}.kernel"
    text = _text_of(kernel)
    used = [module.__name__ for module in (implicit_gemm, moments) if module.__name__ in text]
    assert used or not shared, f"{op} does not use the shared device code"
    texts = {name: _text_of(name) for name in used} | {kernel: text}
    for name in used if shared else [kernel] if old else []:
        assert old in texts[name], f"the text to change is no longer there: {old!r}"
        assert old != new
        texts[name] = texts[name].replace(old, new)
    return texts


def _text_of(name: str) -> str:
    file = importlib.import_module(name).__file__
    assert file is not None
    return Path(file).read_text()


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plant]:
    """A function that lets an op launch a copy of its kernels, with one change or none."""
    names: list[str] = []

    def copy(stem: str, text: str) -> ModuleType:
        name = f"planted_{stem}_{next(_counter)}"
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        names.append(name)
        spec.loader.exec_module(module)
        return module

    def do(op: str, old: str = "", new: str = "", shared: bool = False) -> None:
        *used, (_, text) = source(op, old, new, shared).items()
        for name, device_code in used:
            text = text.replace(name, copy(name.rpartition(".")[2], device_code).__name__)
        monkeypatch.setattr(kernels.load(op), "kernel", copy(op, text))

    yield do
    for name in names:
        sys.modules.pop(name)


def identity(mutation: Mutation) -> str:
    return f"{mutation.op}: {mutation.name}"
