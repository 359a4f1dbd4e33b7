"""Folders of the user's own: what of them is trusted, and that a block runs in one process at a time."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from srgan_fast import private
from srgan_fast.errors import BackendUnavailable, OutputError

HOLD = """
import sys, time
from pathlib import Path
from srgan_fast import private
with private.locked(Path(sys.argv[1]), on_wait=lambda: print("waits", flush=True)):
    print("has it", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SRGAN_FAST_CACHE", str(tmp_path / "cache"))
    return private.folder("things")


def test_a_folder_is_made_for_the_user_alone(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert folder == tmp_path / "cache" / "things"
    assert folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.delenv("SRGAN_FAST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert private.folder("things") == tmp_path / "xdg" / "srgan-fast" / "things"


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_a_folder_that_others_may_write_into_is_refused(folder: Path, mode: int) -> None:
    folder.chmod(mode)
    with pytest.raises(BackendUnavailable, match=r"others may write into .*things; chmod go-w .* SRGAN_FAST_CACHE"):
        private.folder("things")


def test_a_folder_of_another_user_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(BackendUnavailable, match="belongs to another user; set SRGAN_FAST_CACHE"):
        private.folder("things")


def test_a_file_is_read_only_if_it_is_the_users_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = os.umask(0)
    try:
        private.write(folder / "one", b"content")
    finally:
        os.umask(old)
    assert (folder / "one").stat().st_mode & 0o777 == 0o600
    assert private.read(folder / "one") == b"content"
    (folder / "link").symlink_to(folder / "one")
    os.mkfifo(folder / "pipe")
    for name in ("link", "pipe", "none"):
        assert private.read(folder / name) is None, name
    (folder / "one").chmod(0o620)
    assert private.read(folder / "one") is None
    (folder / "one").chmod(0o644)
    assert private.read(folder / "one") == b"content"
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    assert private.read(folder / "one") is None


def test_what_cannot_be_written_is_said(folder: Path) -> None:
    for use in (
        lambda: private.write(folder / "gone" / "one", b""),
        private.locked(folder / "gone" / "l", print).__enter__,
    ):
        with pytest.raises(OutputError, match=r"gone takes no file \(No such file or directory\); make room"):
            use()


def test_only_old_parts_are_swept(folder: Path) -> None:
    old, new, other = folder / f".{'0' * 16}.part", folder / f".{'1' * 16}.part", folder / "film.part"
    for path in (old, new, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (0, 0))
    private.sweep(folder)
    assert set(folder.iterdir()) == {new, other}


def test_a_lock_is_held_by_one_and_given_back_by_a_killed_process(folder: Path) -> None:
    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, str(folder / "lock")]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def said(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        return process.stdout.readline().strip()

    first = start()
    assert said(first) == "has it"
    others = [start(), start()]
    assert [said(other) for other in others] == ["waits", "waits"]
    first.send_signal(signal.SIGKILL)
    first.communicate()
    # One of the two, and the other only when that one is done.
    streams = {other.stdout: other for other in others}
    (ready,), _, _ = select.select(list(streams), [], [], 30)
    second = streams.pop(ready)
    ((waiting, third),) = streams.items()
    assert said(second) == "has it"
    assert select.select([waiting], [], [], 0.1)[0] == []
    second.communicate()
    assert said(third) == "has it"
    third.communicate()
    assert not list(folder.iterdir())
