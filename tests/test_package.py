"""The package as a user meets it: light imports, imports that point one way, a pure wheel that works alone."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

PACKAGE = ROOT / "srgan_fast"

# Who may import whom: a part may use those to its right of the arrow in DESIGN, never those before it.
LAYERS = [
    {"errors", "archive", "atomic", "outputs", "private", "kept", "stop"},
    {"model", "resize", "memory", "graph", "kernels", "exchange"},
    {"calibration", "weights", "community", "layers", "features", "image", "rewrite", "tiling"},
    {"export", "tensorrt"},
    {"backends"},
    {"upscaler", "reuse", "stream"},
    {"evaluate"},
    {"train", "video", "vapoursynth"},
    {"bench"},
    {"cli"},
    {"__main__"},
]


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


def test_import_loads_nothing_heavy() -> None:
    code = "import sys, srgan_fast; print([m for m in ('torch', 'triton', 'av', 'numpy') if m in sys.modules])"
    assert run(code).stdout.strip() == "[]"


def test_help_loads_nothing_heavy_and_is_quick() -> None:
    code = (
        "import sys\nsys.argv = ['srgan-fast', '--help']\nfrom srgan_fast.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "print([m for m in ('torch', 'triton', 'av') if m in sys.modules])"
    )
    before = os.times()
    result = run(code)
    after = os.times()
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().endswith("[]")
    # Of the processor, not of the clock: other tests keep it busy.
    assert after.children_user + after.children_system - before.children_user - before.children_system < 0.5


def test_the_module_is_the_command() -> None:
    command = [sys.executable, "-m", "srgan_fast", "train", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert "Train SRResNet or SRGAN" in result.stdout


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """The parts of this package that a file imports, at any depth."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            assert name.split(".")[0] not in ("kernels", "bench"), f"{path} imports a bare {name}"
            pieces = name.split(".")
            if pieces[0] == "srgan_fast" and len(pieces) > 1:
                parts.add(pieces[1])
    return parts


def sources() -> list[Path]:
    # The links to kernels/ and bench/ are followed by os.walk only when told to.
    found = []
    for folder, _, files in os.walk(PACKAGE, followlinks=True):
        found += [Path(folder) / name for name in files if name.endswith(".py")]
    return sorted(found)


def test_imports_point_down() -> None:
    rank = {part: level for level, parts in enumerate(LAYERS) for part in parts}
    for path in sources():
        part = part_of(path)
        if part == "__init__":
            continue
        assert part in rank, f"{path} belongs to no layer; add it to LAYERS"
        for other in imports_of(path) - {part, "__version__"}:
            if other in rank:
                assert rank[other] <= rank[part], f"{path} imports {other}, which lies above it"


def test_model_is_plain_pytorch() -> None:
    assert imports_of(PACKAGE / "model.py") <= {"errors"}


def pip(*arguments: object, python: Path = Path(sys.executable)) -> None:
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--wheel-dir", folder, ROOT)
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_is_pure_python_even_where_nvcc_is(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")


def test_wheel_has_what_it_needs_and_no_records(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in (
        "srgan_fast/py.typed",
        "srgan_fast/kernels/parity.py",
        "srgan_fast/bench/record.py",
        "srgan_fast/evaluate/mos/page.html",
    ):
        assert wanted in names
    # Kernels for Hopper are compiled where they run, from their sources.
    sources = [*(ROOT / "kernels").rglob("*.cu"), *(ROOT / "kernels").rglob("*.cuh")]
    assert sources
    assert {f"srgan_fast/kernels/{path.relative_to(ROOT / 'kernels')}" for path in sources} <= set(names)
    for wanted in ("page.html", "page.css", "page.js", "published.toml"):
        assert f"srgan_fast/evaluate/report/{wanted}" in names
    assert any(name.startswith("srgan_fast/data/") and name.endswith(".safetensors") for name in names)
    assert not [name for name in names if "results/" in name or name.startswith("tests/")]


def test_wheel_works_alone(wheel: Path, tmp_path: Path) -> None:
    """Installed by itself: its own code from the wheel, its dependencies borrowed from this environment."""
    site = tmp_path / "site"
    pip("install", "--no-deps", "--target", site, wheel)
    # -S: without the hook by which an editable install would put the source tree first.
    paths = [str(site), sysconfig.get_paths()["purelib"]]
    code = (
        f"import sys; sys.path[:0] = {paths!r}\n"
        "import numpy, srgan_fast\n"
        f"assert srgan_fast.__file__.startswith({str(site)!r}), srgan_fast.__file__\n"
        "print(srgan_fast.Upscaler()(numpy.zeros((5, 7, 3), numpy.uint8)).shape)"
    )
    command = [sys.executable, "-S", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.stdout.strip() == "(20, 28, 3)", result.stderr


@pytest.mark.slow
def test_wheel_works_in_an_empty_venv(wheel: Path, tmp_path: Path) -> None:
    """As a user installs it: nothing there before, dependencies found by pip, the command by its name."""
    venv.create(tmp_path / "venv", with_pip=True)
    binaries = tmp_path / "venv" / "bin"
    pip("install", "-c", ROOT / "requirements.lock", wheel, python=binaries / "python")
    # Nothing of this environment or of the source tree may help.
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)).save(tmp_path / "in.png")

    def command(*arguments: str) -> str:
        result = subprocess.run(
            [str(binaries / "srgan-fast"), *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert (result.returncode, result.stderr) == (0, "")
        return result.stdout

    assert "upscale" in command("--help")
    assert "1 upscaled" in command("upscale", "in.png", "out.png")
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.size == (28, 20)
    shutil.rmtree(tmp_path / "venv")  # most of a gigabyte, which pytest would keep for days
