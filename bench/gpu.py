"""Everything that needs a GPU, in one command, on a machine that may have little more than torch, triton and pytest.

usage: python -m srgan_fast.bench.gpu [--budget-s 480] [--parts a,b] [--out FOLDER] [--continue RECORD] [--stamp]

Run from a checkout, with the checkout on PYTHONPATH; `make gpu` does so. Parts run in the order of their worth, each in
a process of its own, until the budget ends; a part that fails or hangs is reported, and the others go on.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from srgan_fast.bench import parts
from srgan_fast.bench.record import ROOT, RUN, environment, record, write_stamp
from srgan_fast.bench.table import Table, ceiling_line, rates_table, speed_tables, winners_table
from srgan_fast.errors import BackendUnavailable, InputError, Interrupted, OutputError, SRGANFastError, UsageError

RESULTS = ROOT / "bench" / "results"
PASSED, _STOPPED = "passed", "not run: stopped by the user"
_NOT_HERE = 3  # the exit code of a child whose part cannot run on this machine
_LAST_LINES = 30

Record = dict[str, Any]


def run(table: ModuleType, names: Sequence[str], file: Path, budget_s: float) -> list[Record]:
    """Run parts of a table within a budget, and append to `file` what they measure and what became of each.

    Returns an outcome for each name: passed, failed with the reason, or not run with the reason.
    """
    end = time.monotonic() + budget_s
    known: dict[str, parts.Part] = {part.name: part for part in table.PARTS}
    outcomes: list[Record] = []
    stopped = False
    for name in names:
        part = known[name]
        start = time.monotonic()
        missing = [package for package in part.packages if find_spec(package) is None]
        if stopped:
            said = _STOPPED
        elif missing:
            said = f"failed: needs {', '.join(missing)}, which is not installed"
        elif end - start < part.seconds:
            said = f"not run: {max(0, end - start):.0f} s were left of the budget, it takes about {part.seconds:g} s"
        else:
            print(f"=== {name}, about {part.seconds:g} s, {end - start:.0f} s left", flush=True)
            try:
                said = _in_child(table, name, file, min(part.limit_s, end - start))
            except KeyboardInterrupt:
                stopped, said = True, _STOPPED
        gate = {"p": "pass", "f": "fail", "n": "not run"}[said[0]]
        outcome = record(
            "gpu", name, outcome=said, seconds=time.monotonic() - start, raw={}, derived={}, quality={"gate": gate}
        )
        append(file, outcome)
        outcomes.append(outcome)
        print(f"=== {name}: {said}", flush=True)
    return outcomes


def append(file: Path, one: Record) -> None:
    """Add a record as one line in one write, which no other process can come between and no kill can halve.

    Raises:  OutputError if there is no room for it: then nothing is added
    """
    line = (json.dumps(one) + "\n").encode()
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            before = os.fstat(descriptor).st_size
            if os.write(descriptor, line) < len(line):
                os.ftruncate(descriptor, before)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise OutputError(f"cannot write {file}: {error.strerror}; make room, --continue goes on") from error


def unfinished(file: Path, table: ModuleType) -> list[str]:
    """The parts that an earlier run did not reach.

    Raises:  InputError if the file is no such run, or of another state of the sources
    """
    try:
        records = read(file)
    except (OSError, ValueError) as error:
        raise InputError(f"expected --continue to name the records of a run, got {file}: {error}") from error
    outcomes = {one["name"]: one["outcome"] for one in records if one["suite"] == "gpu"}
    if not outcomes:
        raise InputError(f"expected --continue to name the records of a run, got {file}, which has no outcome in it")
    then, now = records[-1]["env"], environment()
    for key in ("commit", "dirty", "gpu"):
        if then[key] != now[key]:
            raise InputError(
                f"{file.name} was made with {key} {then[key]}, here it is {now[key]}; one file is one state: start anew"
            )
    return [part.name for part in table.PARTS if outcomes.get(part.name, "not run").startswith("not run")]


def read(file: Path) -> list[Record]:
    """The records of a file."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def summary(table: ModuleType, records: Iterable[Record]) -> str:
    """What became of each part of a table by the last word on it; a part that nobody asked for was not run."""
    last = {one["name"]: one for one in records if one["suite"] == "gpu"}
    rows = [
        (part.name, f"{last[part.name]['seconds']:.0f}", last[part.name]["outcome"])
        if part.name in last
        else (part.name, "-", "not run: not asked for")
        for part in table.PARTS
    ]
    return Table("make gpu", ("part", "s", "outcome"), rows).text()


def winners(records: Iterable[Record]) -> str:
    """Which implementation of an op won at each shape, and which ones the network took where it was first used."""
    known = list(records)
    text, table = "", winners_table(known)
    if table.rows:
        text += table.text() + "\n"
    choices: dict[str, str] = {}
    for one in known:
        choices |= one["raw"].get("choices", {}) if one["suite"] == "parts" else {}
    if choices:
        text += Table("taken by the network", ("call", "by"), sorted(choices.items())).text() + "\n"
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, report; 1 if a part failed."""
    asked = _parsed(arguments)
    try:
        if asked.child:
            return _child(import_module(asked.table), asked.child, Path(asked.records))
        if asked.stamp:
            print(f"stamped {write_stamp()}")
            return 0
        return _whole_run(asked)
    except SRGANFastError as error:
        print(f"srgan-fast: {error}", file=sys.stderr)
        return error.exit_code


def _whole_run(asked: argparse.Namespace) -> int:
    table = import_module(asked.table)
    if table is parts and not torch.cuda.is_available():
        raise BackendUnavailable("make gpu needs an NVIDIA GPU, and torch sees none; look at nvidia-smi")
    names = [part.name for part in table.PARTS]
    if asked.continued is not None:
        file = Path(asked.continued)
        names = unfinished(file, table)
    else:
        folder = Path(asked.out)
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise OutputError(f"expected --out to name a folder that can be written, got {folder}; make it first")
        file = folder / f"gpu-{datetime.now(UTC):%Y%m%d-%H%M%S}-{RUN}.jsonl"
    if asked.parts:
        wanted = asked.parts.split(",")
        if unknown := set(wanted) - {part.name for part in table.PARTS}:
            raise UsageError(
                f"expected --parts of {', '.join(part.name for part in table.PARTS)}, got {', '.join(sorted(unknown))}"
            )
        names = wanted
    env = environment()
    if env["dirty"] is not False:
        print("the tree is not clean, or nothing says what it is: these records will prove no claim (make gpu-stamp)")
    print(f"{env['gpu'] or env['cpu']}, torch {env['torch']}, commit {env['commit']}, records in {file.name}")
    outcomes = run(table, names, file, asked.budget_s)
    records = read(file)
    print()
    for speeds, first in speed_tables(records):
        print(speeds.text() + ceiling_line(one for one in records if one["run"] == first["run"]))
    rates = [one for one in records if one["suite"] == "rates"]
    if rates:
        print(rates_table(rates).text())
    print(winners(records) + summary(table, records))
    if any(one["outcome"] == _STOPPED for one in outcomes):
        return Interrupted.exit_code
    last = {one["name"]: one["quality"]["gate"] for one in records if one["suite"] == "gpu"}
    return int("fail" in last.values())


def _in_child(table: ModuleType, name: str, file: Path, limit_s: float) -> str:
    """Run one part and say what became of it."""
    command = [sys.executable, "-m", __spec__.name, "--child", name, "--table", table.__name__, "--records", str(file)]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True
    )
    last: deque[str] = deque(maxlen=_LAST_LINES)
    reader = threading.Thread(target=_echo, args=(child, last), daemon=True)
    reader.start()
    try:
        ended = _ends_within(child.pid, limit_s)
    finally:
        # With all that it started: a compiler's workers, a pytest, a sanitizer. It has not been waited for yet, so its
        # number is still its own.
        os.killpg(child.pid, signal.SIGKILL)
        code = child.wait()
        reader.join(10)
    if not ended:
        return f"failed: not done after {limit_s:.0f} s"
    if code == 0:
        return PASSED
    # A record is published: of a path only the name, not where its owner keeps it.
    words = re.sub(r"/\S*/", "", last[-1] if last else "no output")[:300]
    if code == _NOT_HERE:
        return f"not run: {words}"
    return f"failed: {words}" if code > 0 else f"failed: ended by signal {-code} ({words})"


def _ends_within(pid: int, limit_s: float) -> bool:
    end = time.monotonic() + limit_s
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def _echo(child: subprocess.Popen[str], last: deque[str]) -> None:
    assert child.stdout is not None
    with child.stdout as said:
        for line in said:
            print(line, end="", flush=True)
            if line.strip():
                last.append(line.strip())


def _child(table: ModuleType, name: str, file: Path) -> int:
    part = next(part for part in table.PARTS if part.name == name)
    try:
        part.run(lambda one: append(file, one))
    except parts.NotHere as error:
        print(error, flush=True)
        return _NOT_HERE
    except SRGANFastError as error:
        print(error, flush=True)
        return 1
    return 0


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make gpu", description="Everything that needs a GPU, within a budget.")
    parser.add_argument("--budget-s", type=float, default=480.0, help="seconds for all parts together")
    parser.add_argument("--parts", help="names with commas between; all by default, in the order of their worth")
    parser.add_argument("--out", default=str(RESULTS), help="the folder of the record file")
    parser.add_argument("--continue", dest="continued", metavar="RECORD", help="go on with what a run did not reach")
    parser.add_argument("--stamp", action="store_true", help="only note the commit, for a copy without .git")
    parser.add_argument("--table", default=parts.__name__, help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--records", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
