"""The kernels for sm_90a compiled ahead of time, with no GPU: nothing spills, all fit, the machine code is as meant.

Fast: a sample. Slow: all that may be asked for (`sm90_table.py`).
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
from sm90_table import CONV3X3, HEAD, INT8, PROBE, TABLE, TAIL, Entry, copy, faults, values

from srgan_fast.kernels import hopper, nvrtc
from srgan_fast.kernels.nvrtc import Specialisation

pytestmark = [
    pytest.mark.beside,
    pytest.mark.skipif(nvrtc.why_not() is not None, reason="; ".join(nvrtc.why_not() or ())),
]

# Few, of every layout, epilogue and type: a step that is no divisor of the order of the table, and the tallest tiles.
SAMPLE = [
    *CONV3X3[::61],
    *INT8[::131],
    *PROBE,
    *HEAD[::37],
    *TAIL[::53],
    *[entry for entry in CONV3X3 if "kShifted, 30, true, true" in entry.name],
]
TALLEST = next(entry for entry in CONV3X3 if "<Half, kShifted, 32, true, true>" in entry.name)


def selected() -> list[object]:
    return [pytest.param(entry, id=entry.name, marks=() if entry in SAMPLE else pytest.mark.slow) for entry in TABLE]


@pytest.mark.parametrize("entry", selected())
def test_machine_code_is_as_meant(entry: Entry) -> None:
    assert faults(entry) == []


def test_sample_has_every_layout_epilogue_and_type() -> None:
    words = {
        word for entry in SAMPLE for word in ("kShifted", "kFlat", "kBoxes", "BFloat16", "Half") if word in entry.name
    }
    assert len(words) == 5
    assert len({entry.name.split(", ", 3)[3] for entry in SAMPLE if entry in CONV3X3}) == 4


def test_shared_memory_is_what_the_source_says_and_fits() -> None:
    by_file = defaultdict(list)
    for entry in TABLE:
        by_file[entry.source.file].append(entry)
    for file, entries in by_file.items():
        wanted = {entry.shared: entry.shared_bytes for entry in entries}
        assert values(file, list(wanted)) == list(wanted.values()), file
        assert max(wanted.values()) <= hopper.SHARED_LIMIT_BYTES


@pytest.mark.parametrize(
    ("of", "old", "new", "said"),
    [
        ("sm90.cu", "#pragma unroll\n    for (int j", "#pragma unroll 1\n    for (int j", "bytes of stack"),
        ("conv3x3.cuh", "#pragma unroll\n    for (int tap", "#pragma unroll 1\n    for (int tap", "not 36"),
        ("conv3x3.cuh", "registers_down_to<40>();", "", "registers_moved: 1, not 2"),
        ("sm90.cu", "store_matrices(row + j * 16 * 128, after);", "", "matrix_store: 0"),
    ],
)
def test_a_planted_fault_is_found(of: str, old: str, new: str, said: str, tmp_path: Path) -> None:
    altered = copy(TALLEST.source.file, tmp_path, old, new, of=of)
    found = faults(TALLEST, Specialisation(altered, TALLEST.source.expression))
    assert any(said in fault for fault in found), found


def test_a_kernel_without_its_registers_does_not_compile(tmp_path: Path) -> None:
    altered = copy(TALLEST.source.file, tmp_path, "__launch_bounds__(384, 1)", "__launch_bounds__(384, 2)")
    with pytest.raises(nvrtc.CompileError, match="Insufficient registers"):
        faults(TALLEST, Specialisation(altered, TALLEST.source.expression))


def test_nvrtc_12_compiles_it_too() -> None:
    """In the same process as another version, which is the case where torch brings one and the system another."""
    libraries = [path for path in nvrtc.candidates() if path.name == "libnvrtc.so.12"]
    if not libraries:
        pytest.skip("NVRTC 12 is not installed: pip install nvidia-cuda-nvrtc-cu12")
    compiler = nvrtc.Compiler(libraries[0])
    assert compiler.number[0] == 12
    assert "0 bytes spill stores" in compiler.compile(TALLEST.source).log
