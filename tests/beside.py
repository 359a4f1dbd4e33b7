"""Tests that run in processes beside the others, on a core of their own where there are two.

Those marked `interpreter` have to: Triton reads TRITON_INTERPRET when it decorates a kernel, so no process can both
interpret kernels and compile them. Those marked `beside` take their turn after them, so that both cores have about as
much to do. Each process is a pytest that is given its tests; it hands back the report of each as it ends. The parent,
once it has run its own, shows them as its own: every case has its name, its output and its place in the summary.
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
from collections.abc import Mapping, Sequence
from typing import IO

import pytest

# In such a process: the number of the open file to which the reports go.
_REPORTS = "SRGAN_FAST_TEST_REPORTS"

Group = tuple[list[pytest.Item], Mapping[str, str]]


def groups_of(items: Sequence[pytest.Item]) -> list[Group]:
    """The tests of each process beside this one, with what its environment has more; none within such a process."""
    if _REPORTS in os.environ:
        return []
    interpreted = [item for item in items if item.get_closest_marker("interpreter")]
    beside = [item for item in items if item.get_closest_marker("beside") and item not in interpreted]
    if len(interpreted) + len(beside) == len(items):  # there is nothing that these could run beside
        beside = []
    if os.environ.get("TRITON_INTERPRET") == "1":
        interpreted = []
    return [group for group in ((interpreted, {"TRITON_INTERPRET": "1"}), (beside, {})) if group[0]]


class Beside:
    """Processes for groups of tests, one after another."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self._config = groups[0][0][0].config
        self._groups, self._names = groups, {item.nodeid for items, _ in groups for item in items}
        self._reports: dict[str, list[pytest.TestReport]] = defaultdict(list)
        # What the processes report, as it comes: a full pipe would hold them up. None once there is no more.
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by stop
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ended: list[int] = []
        self._stopped = False
        self._runner = threading.Thread(target=self._run, daemon=True)
        self._runner.start()

    def __contains__(self, item: pytest.Item) -> bool:
        return item.nodeid in self._names

    def reports(self, item: pytest.Item) -> list[pytest.TestReport]:
        """What became of a test: its setup, call and teardown; one failure with the output if its process died."""
        name = item.nodeid
        while not any(report.when == "teardown" for report in self._reports[name]):
            line = self._lines.get()
            if line is None:
                self._lines.put(None)  # for the next that waits
                return [self._lost(item)]
            data = json.loads(line)
            report = self._config.hook.pytest_report_from_serializable(config=self._config, data=data)
            if isinstance(report.longrepr, list):
                report.longrepr = tuple(report.longrepr)  # of a skipped test, which JSON has no tuple for
            self._reports[report.nodeid].append(report)
        return self._reports.pop(name)

    def stop(self) -> None:
        """End the process that still runs, and start no other."""
        with self._lock:
            self._stopped = True
            if self._process is not None:
                self._process.terminate()
        self._runner.join()
        self._output.close()

    def _run(self) -> None:
        for items, more in self._groups:
            read, write = os.pipe()
            with self._lock:
                if not self._stopped:
                    self._process = subprocess.Popen(
                        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *(item.nodeid for item in items)],
                        cwd=self._config.rootpath,
                        env={**os.environ, **more, _REPORTS: str(write)},
                        pass_fds=(write,),
                        stdout=self._output,
                        stderr=subprocess.STDOUT,
                    )
            os.close(write)
            with os.fdopen(read) as lines:
                for line in lines:
                    self._lines.put(line)
            if self._process is not None:
                self._ended.append(self._process.wait())
        self._lines.put(None)

    def _lost(self, item: pytest.Item) -> pytest.TestReport:
        self._output.seek(0)
        said = self._output.read().decode(errors="replace")[-4000:]
        text = f"the processes beside this one ended with {self._ended}, and this test had not:\n{said}"
        return pytest.TestReport(item.nodeid, item.location, dict.fromkeys(item.keywords, 1), "failed", text, "call")


def hand_back(config: pytest.Config, report: pytest.TestReport) -> None:
    """In such a process: send a report to the parent."""
    target = os.environ.get(_REPORTS)
    if target is None:
        return
    data = config.hook.pytest_report_to_serializable(config=config, report=report)
    rest = (json.dumps(data) + "\n").encode()
    while rest:
        rest = rest[os.write(int(target), rest) :]
