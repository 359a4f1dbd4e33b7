"""A measurement in a process of its own, which is ended when it takes too long, as compilers may."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from srgan_fast.errors import SRGANFastError

Record = dict[str, Any]


def measured_in(module: str, limit_s: float, arguments: Sequence[Any], options: Mapping[str, Any]) -> list[Record]:
    """What a suite's module prints by `answer` when it runs as a program.

    Raises:  SRGANFastError with the child's last words, or with the limit that it ran into
    """
    command = [sys.executable, "-m", module, json.dumps([arguments, options])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit_s)
    except subprocess.TimeoutExpired:
        raise SRGANFastError(f"the compiler was not done after {limit_s:g} s; raise --compile-limit-s") from None
    if done.returncode:
        raise SRGANFastError(f"the measured process ended with {done.returncode} ({last_words(done)})")
    # Compilers write to the standard output too; the records are its last line.
    found: list[Record] = json.loads(done.stdout.splitlines()[-1])
    return found


def last_words(ended: subprocess.CompletedProcess[str]) -> str:
    """The last line of what a process said before it failed."""
    return (ended.stderr.strip().splitlines() or ["no output"])[-1]


def answer(measure: Callable[..., Iterable[Record]]) -> None:
    """Print the records of a measurement for the process that asked for it."""
    arguments, options = json.loads(sys.argv[1])
    try:
        print(json.dumps(list(measure(*arguments, **options))))
    except SRGANFastError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
