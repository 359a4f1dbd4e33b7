"""Tests marked `interpreter` run in a child process, in which Triton's kernels run on the CPU.

Triton reads TRITON_INTERPRET when it decorates a kernel, so no process can both interpret kernels and compile them.
The child is a pytest that is given the selected tests; it hands back the report of each as it ends, and the parent
shows it as its own: every case has its name, its output and its place in the summary. It starts with the first test and
runs beside the others, on a core of its own where there are two.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Sequence
from typing import IO

import pytest

# In the child: the number of the open file to which the reports go.
_REPORTS = "SRGAN_FAST_INTERPRETER_REPORTS"


def wants_child(item: pytest.Item) -> bool:
    """Whether a test has to run in the child; a pytest that was started with TRITON_INTERPRET=1 needs none."""
    return item.get_closest_marker("interpreter") is not None and os.environ.get("TRITON_INTERPRET") != "1"


class Child:
    """A pytest process for some tests, which it runs in their order."""

    def __init__(self, items: Sequence[pytest.Item]) -> None:
        self._config, self._count = items[0].config, len(items)
        self._reports: dict[str, list[pytest.TestReport]] = defaultdict(list)
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by stop
        read, write = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *(item.nodeid for item in items)],
            cwd=self._config.rootpath,
            env=os.environ | {"TRITON_INTERPRET": "1", _REPORTS: str(write)},
            pass_fds=(write,),
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )
        os.close(write)
        # Read as they come: a full pipe would hold the child up.
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, args=(read,), daemon=True)
        self._reader.start()

    def reports(self, item: pytest.Item) -> list[pytest.TestReport]:
        """What became of a test: its setup, call and teardown; one failure with the child's output if it died."""
        name = item.nodeid
        while not any(report.when == "teardown" for report in self._reports[name]):
            line = self._lines.get()
            if not line:
                return [self._lost(item)]
            data = json.loads(line)
            report = self._config.hook.pytest_report_from_serializable(config=self._config, data=data)
            self._reports[report.nodeid].append(report)
        return self._reports.pop(name)

    def stop(self) -> None:
        """End the child, if it still runs, and wait for it."""
        self._process.terminate()
        self._process.wait()
        self._reader.join()
        self._output.close()

    def _read(self, source: int) -> None:
        with os.fdopen(source) as lines:
            for line in lines:
                self._lines.put(line)
        for _ in range(self._count):  # as a file at its end gives, for each test that still waits
            self._lines.put("")

    def _lost(self, item: pytest.Item) -> pytest.TestReport:
        code = self._process.wait()
        self._output.seek(0)
        said = self._output.read().decode(errors="replace")[-4000:]
        text = f"the child process with the interpreter ended with code {code} before this test did:\n{said}"
        return pytest.TestReport(item.nodeid, item.location, dict.fromkeys(item.keywords, 1), "failed", text, "call")


def hand_back(config: pytest.Config, report: pytest.TestReport) -> None:
    """In the child: send a report to the parent."""
    target = os.environ.get(_REPORTS)
    if target is None:
        return
    data = config.hook.pytest_report_to_serializable(config=config, report=report)
    rest = (json.dumps(data) + "\n").encode()
    while rest:
        rest = rest[os.write(int(target), rest) :]
