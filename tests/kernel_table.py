"""Print the kernels' two tables: parity by op and dtype, and what the compiler makes of each op by architecture.

    python tests/kernel_table.py [--all] [--only OP] [--skip-parity] [--skip-compile]

Parity runs on the GPU if there is one, else through Triton's interpreter, for which the script starts itself again.
The second table is compiled ahead of time and needs no GPU. Exits with 1 if a case fails, a kernel spills or one does
not fit the shared memory of its architecture.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

import torch
from ahead_of_time import FRAMES, NETWORK, TABLE, TRAINING, Entry, Launch, assumed, build, launches
from op_parity import FLOATS, judge, name_of

from srgan_fast import kernels
from srgan_fast.kernels.launch import SHARED_LIMIT_KIB


def show(widths: Sequence[int], cells: Sequence[object]) -> None:
    """One line, with the last column as long as it is."""
    padded = [str(cell).ljust(width) for cell, width in zip(cells, widths, strict=False)]
    print("  ".join([*padded, *map(str, cells[len(widths) :])]).rstrip(), flush=True)


def forms(device: str) -> Iterator[tuple[str, contextlib.AbstractContextManager[None]]]:
    """The kernels to hold to the reference: the GPU's own, or in the interpreter those of Ampere and of Hopper."""
    if device == "cuda":
        yield f"sm_{kernels.architecture(torch.device(device))}", contextlib.nullcontext()
    else:
        yield "sm_80", assumed(80)
        yield "sm_90", assumed(90)


def parity_table(device: str, only: str | None) -> bool:
    """Hold every case of every op against its reference; whether all pass."""
    where = torch.cuda.get_device_name() if device == "cuda" else "CPU, Triton's interpreter"
    print(f"Parity on {where}: the largest error and RMS of an op's cases, as shares of what the rule allows\n")
    widths = (20, 10, 10, 8, 11)
    show(widths, ("op", "kernels", "dtype", "cases", "max error", "RMS"))
    fine = True
    for op in [only] if only else kernels.OPS:
        for form, context in forms(device):
            with context:
                # The interpreter gets products of bfloat16 wrong.
                for dtype in FLOATS if device == "cuda" else FLOATS[:2]:
                    judged = {case.name: judge(op, case, device, dtype) for case in kernels.load(op).CASES}
                    passed = sum(one.passed for one in judged.values())
                    largest = max(one.report.max_error / max(one.report.max_allowed, 1e-30) for one in judged.values())
                    rms = max(one.report.rms_error / one.report.rms_allowed for one in judged.values())
                    cells = (op, form, name_of(dtype), f"{passed}/{len(judged)}", f"{largest:.0%}", f"{rms:.0%}")
                    show(widths, cells)
                    for name, one in judged.items():
                        if not one.passed:
                            print(f"    {name}: {one}")
                            fine = False
    print()
    return fine


def tile_of(one: Launch) -> str:
    """Pixels x outputs x inputs, warps, stages; nothing for kernels without products."""
    constants = one.constants
    if "BK" in constants and "BP" in constants:
        tile = f"{constants['BP']}x{constants['BN']}x{constants['BK']}"
        return f"{tile} w{constants['num_warps']} s{constants['num_stages']}"
    if "TH" not in constants:
        return ""
    inputs = constants.get("BK", constants.get("CIN"))
    tile = f"{constants['TH']}x{constants['TW']}x{constants['BN']}x{inputs}"
    return f"{tile} w{constants['num_warps']} s{constants['num_stages']}"


def compile_table(entries: Sequence[Entry], dtypes: Sequence[torch.dtype], *, large_only: bool) -> bool:
    """Compile what the ops launch on every architecture; whether all of it fits and nothing spills."""
    print("Compiled ahead of time, never run: tile as pixels x outputs x inputs, warps, stages\n")
    widths = (36, 3, 8, 8, 35, 20, 9, 7, 6)
    show(widths, ("op", "sm", "dtype", "frame", "kernel", "tile", "registers", "shared", "spills", "instructions"))
    fine = True
    for entry in entries:
        for sm, limit_kib in sorted(SHARED_LIMIT_KIB.items()):
            for frame, size in entry.frames.items():
                if large_only and frame in FRAMES and frame != "large":
                    continue
                for dtype in dtypes:
                    for one in launches(entry, size, dtype, sm):
                        built = build(one, sm)
                        shared_kib = -(-built.shared_bytes // 1024)
                        spills = built.instructions["spill"] + built.stack_bytes + built.local_bytes
                        fits = not spills and built.shared_bytes <= limit_kib * 1024
                        fine &= fits
                        found = {
                            name: count
                            for name, count in built.instructions.items()
                            if count and name not in ("spill", "fma")
                        }
                        said = " ".join(f"{name} {count}" for name, count in found.items())
                        cells = (f"{entry.op}: {entry.name}", sm, name_of(dtype), frame, one.name, tile_of(one))
                        shared = f"{shared_kib}/{limit_kib}"
                        show(
                            widths, (*cells, built.registers, shared, spills, said + ("" if fits else " DOES NOT FIT"))
                        )
    print()
    return fine


def main() -> int:
    parser = argparse.ArgumentParser(description="Parity of the kernels, and their resources by architecture.")
    parser.add_argument("--only", choices=list(kernels.OPS), help="one op")
    parser.add_argument("--all", action="store_true", help="every width, frame and dtype: many minutes")
    parser.add_argument("--skip-parity", action="store_true")
    parser.add_argument("--skip-compile", action="store_true")
    options = parser.parse_args()
    if kernels.interpreting():
        return 0 if parity_table("cpu", options.only) else 1
    fine = True
    if not options.skip_parity and torch.cuda.is_available():
        fine &= parity_table("cuda", options.only)
    elif not options.skip_parity:
        command = [sys.executable, *sys.argv, "--skip-compile"]
        fine &= subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, check=False).returncode == 0
    if not options.skip_compile:
        table = (TABLE if options.all else NETWORK) + TRAINING
        entries = [entry for entry in table if options.only in (None, entry.op)]
        fine &= compile_table(entries, FLOATS if options.all else [torch.float16], large_only=not options.all)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
