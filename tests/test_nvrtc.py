"""Kernels compiled at first use: NVRTC is found or missed with a cure, and what it makes is kept for the next time."""

from __future__ import annotations

import errno
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

from srgan_fast import private
from srgan_fast.kernels import cubins, nvrtc
from srgan_fast.kernels.nvrtc import CompileError, Cubin, Specialisation

needs_nvrtc = pytest.mark.skipif(nvrtc.why_not() is not None, reason="; ".join(nvrtc.why_not() or ()))


@pytest.fixture
def source(tmp_path: Path) -> Specialisation:
    """A kernel that compiles at once."""
    path = tmp_path / "small.cu"
    path.write_text(
        '#include "amount.cuh"\n#include "types.cuh"\n'
        "template <int N> __global__ void add(int* x) { x[threadIdx.x] += N * AMOUNT; }\n"
    )
    (tmp_path / "amount.cuh").write_text("#pragma once\n#define AMOUNT 3\n")
    return Specialisation(str(path), "add<2>")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of a process that has compiled nothing yet."""
    monkeypatch.setenv("SRGAN_FAST_CACHE", str(tmp_path / "cache"))
    forget(monkeypatch)
    return tmp_path / "cache" / "cubins"


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cubins, "_memory", {})
    monkeypatch.setattr(cubins._kept, "warned", set())


def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_(*_: object) -> Cubin:
        raise AssertionError("compiled again")

    monkeypatch.setattr(nvrtc.Compiler, "compile", compile_)


def only_entry(folder: Path) -> Path:
    (entry,) = folder.iterdir()
    return entry


# --- the compiler


@needs_nvrtc
def test_compiles_with_the_headers_beside_and_those_shipped(source: Specialisation) -> None:
    cubin = nvrtc.compile_cubin(source)
    assert cubin.image.startswith(b"\x7fELF")
    assert re.fullmatch(r"_Z3addILi2EEvPi", cubin.symbol)
    assert "0 bytes spill stores" in cubin.log


@needs_nvrtc
def test_a_failed_compile_says_error_file_and_version(source: Specialisation) -> None:
    Path(source.file).write_text("template <int N> __global__ void add(int* x) { x[0] = nothing; }\n")
    with pytest.raises(CompileError) as caught:
        nvrtc.compile_cubin(source)
    said = str(caught.value)
    assert 'identifier "nothing" is undefined' in said
    assert source.file in said
    assert f"NVRTC {nvrtc.version()}" in said
    assert "\n" not in said


@needs_nvrtc
def test_an_unknown_architecture_is_an_error(source: Specialisation) -> None:
    with pytest.raises(CompileError, match="gpu-architecture"):
        nvrtc.compile_cubin(source, "sm_9")


def test_without_nvrtc_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "candidates", lambda: iter(()))
    monkeypatch.setattr(nvrtc, "_found", nvrtc._found.__wrapped__)
    reason = nvrtc.why_not()
    assert reason is not None
    assert "not installed" in reason[0]
    assert "pip install nvidia-cuda-nvrtc" in reason[1]
    with pytest.raises(CompileError, match="pip install"):
        nvrtc.version()


def test_a_library_that_does_not_load_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "libnvrtc.so.13"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(nvrtc, "candidates", lambda: iter([broken]))
    monkeypatch.setattr(nvrtc, "_found", nvrtc._found.__wrapped__)
    reason = nvrtc.why_not()
    assert reason is not None
    assert str(broken) in reason[0]


@pytest.mark.parametrize(
    ("cuda", "first"), [("12.6", "libnvrtc.so.12"), ("13.0", "libnvrtc.so.13"), (None, "libnvrtc.so.13")]
)
def test_the_version_of_torch_is_preferred(
    cuda: str | None, first: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for package, name in (("cuda_nvrtc", "libnvrtc.so.12"), ("cu13", "libnvrtc.so.13"), ("cu13", "libnvrtc.alt.so.13")):
        (tmp_path / "nvidia" / package / "lib").mkdir(parents=True, exist_ok=True)
        (tmp_path / "nvidia" / package / "lib" / name).touch()
    (tmp_path / "nvidia" / "cu13" / "lib" / "libnvrtc.so.13.0.88").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "nvidia", None)
    monkeypatch.delitem(sys.modules, "nvidia")
    monkeypatch.setattr("torch.version.cuda", cuda)
    found = [path.name for path in nvrtc.candidates() if path.is_relative_to(tmp_path)]
    assert found[0] == first
    assert sorted(found) == ["libnvrtc.so.12", "libnvrtc.so.13"]


# --- what the cache depends on


@needs_nvrtc
def test_the_key_follows_sources_headers_expression_architecture_and_version(source: Specialisation) -> None:
    compiler = nvrtc.compiler()
    other = nvrtc.Compiler(compiler.library)
    other.number = 12, 6
    keys = {
        compiler.key(source, "sm_90a"),
        compiler.key(source, "sm_90"),
        compiler.key(Specialisation(source.file, "add<3>"), "sm_90a"),
        other.key(source, "sm_90a"),
    }
    header = Path(source.file).with_name("amount.cuh")
    header.write_text(header.read_text().replace("3", "4"))
    keys.add(compiler.key(source, "sm_90a"))
    Path(source.file).write_text(Path(source.file).read_text() + "\n")
    keys.add(compiler.key(source, "sm_90a"))
    assert len(keys) == 6


@needs_nvrtc
def test_what_is_kept_is_found_by_the_next_process(
    source: Specialisation, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = cubins.get([source])
    assert folder.stat().st_mode & 0o777 == 0o700
    forget(monkeypatch)
    no_compiler(monkeypatch)
    assert cubins.get([source]) == made


@needs_nvrtc
@pytest.mark.parametrize("damage", ["cut short", "flipped", "emptied", "another's", "open to others"])
def test_a_damaged_entry_is_compiled_anew(
    damage: str, source: Specialisation, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = cubins.get([source])
    entry = only_entry(folder)
    data = bytearray(entry.read_bytes())
    if damage == "another's":
        cubins.get([Specialisation(source.file, "add<7>")])
        (other,) = set(folder.iterdir()) - {entry}
        other.replace(entry)
    elif damage == "open to others":
        entry.chmod(0o622)
    elif damage == "flipped":
        data[-100] ^= 4
        entry.write_bytes(data)
    else:
        entry.write_bytes(data[: len(data) // 2 if damage == "cut short" else 0])
    forget(monkeypatch)
    anew = cubins.get([source])
    # The log has the time that it took.
    assert (anew[0].image, anew[0].symbol) == (made[0].image, made[0].symbol)
    forget(monkeypatch)
    no_compiler(monkeypatch)
    assert cubins.get([source]) == anew


# --- folders that cannot be used


@needs_nvrtc
@pytest.mark.parametrize("trouble", ["below a file", "open to others", "of another user"])
def test_an_unusable_folder_means_one_warning_and_a_right_result(
    trouble: str,
    source: Specialisation,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder.parent.mkdir()
    if trouble == "below a file":
        folder.write_text("in the way")
    else:
        folder.mkdir()
        folder.chmod(0o777 if trouble == "open to others" else 0o700)
    if trouble == "of another user":
        monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    with caplog.at_level(logging.WARNING):
        made = [cubins.get([source])[0] for _ in range(2)]
        cubins.get([Specialisation(source.file, "add<9>")])
    assert made[0] is made[1]  # kept for the process
    assert made[0].image.startswith(b"\x7fELF")
    assert len(caplog.records) == 1
    assert "SRGAN_FAST_CACHE" in caplog.text
    assert folder.is_file() or not list(folder.iterdir())


@needs_nvrtc
def test_a_full_disk_means_one_warning_and_a_right_result(
    source: Specialisation, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    @contextmanager
    def full(path: Path) -> Iterator[BinaryIO]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield

    monkeypatch.setattr(private, "atomic", full)
    made = cubins.get([source, Specialisation(source.file, "add<9>")])
    assert all(cubin.image.startswith(b"\x7fELF") for cubin in made)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "No space left" in caplog.text
    assert not list(folder.iterdir())


@needs_nvrtc
def test_the_folder_stays_within_its_bound(
    source: Specialisation, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [Specialisation(source.file, f"add<{number}>") for number in range(4)]
    for number, one in enumerate(sources):
        cubins.get([one])
        os.utime(folder / nvrtc.compiler().key(one, "sm_90a"), (number, number))
    size = max(entry.stat().st_size for entry in folder.iterdir())
    abandoned = folder / ".0123456789abcdef.part"
    strangers = [folder / "photo.tiff", folder / "film.part"]
    for path in (abandoned, *strangers):
        path.write_bytes(bytes(3 * size))
        os.utime(path, (0, 0))
    forget(monkeypatch)
    cubins.get(sources[:1])  # the oldest, but just used
    monkeypatch.setattr(cubins._kept, "most_bytes", 3 * size + 500)
    cubins.get([Specialisation(source.file, "add<100>")])
    assert all(path.exists() for path in strangers)
    left = {entry.name for entry in folder.iterdir() if entry not in strangers}
    assert len(left) == 3
    assert nvrtc.compiler().key(sources[0], "sm_90a") in left
    assert nvrtc.compiler().key(sources[3], "sm_90a") in left


@needs_nvrtc
def test_two_processes_at_once(source: Specialisation, folder: Path) -> None:
    code = (
        "import hashlib\nfrom srgan_fast.kernels import cubins\nfrom srgan_fast.kernels.nvrtc import Specialisation\n"
        f"made = cubins.get([Specialisation({source.file!r}, f'add<{{n}}>') for n in range(4)])\n"
        "print(hashlib.sha256(b''.join(cubin.image for cubin in made)).hexdigest())"
    )
    pair = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in pair]
    assert said[0] == said[1] != ""
    assert len(list(folder.iterdir())) == 4


# --- what the user sees


@needs_nvrtc
def test_progress_is_told_once_and_nothing_when_all_is_there(
    source: Specialisation, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = [source, Specialisation(source.file, "add<5>")]
    cubins.get(sources)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "srgan-fast: compiling 2 GPU kernels, once for this machine"
    assert re.fullmatch(r"srgan-fast: compiled 2 in \d+\.\d s", lines[1])
    assert len(lines) == 2
    forget(monkeypatch)
    cubins.get(sources)
    assert capsys.readouterr() == ("", "")


@needs_nvrtc
def test_progress_counts_in_place_in_a_terminal(
    source: Specialisation, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    cubins.get([source])
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(r"\r.*: 1/1, \d+\.\d s\n$", said)


@needs_nvrtc
def test_one_that_fails_does_not_lose_the_others(
    source: Specialisation, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CompileError, match="nothing"):
        cubins.get([Specialisation(source.file, "add<nothing>"), source])
    no_compiler(monkeypatch)
    assert cubins.get([source])[0].symbol == "_Z3addILi2EEvPi"
