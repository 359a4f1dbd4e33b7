"""What tests share: the command line, a small network, data, a missing GPU, a double of TensorRT, and the processes
beside this one.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from beside import Beside, groups_of, hand_back

ROOT = Path(__file__).resolve().parent.parent
_found = find_spec("srgan_fast")
FROM_TREE = _found is not None and Path(str(_found.origin)).parent == ROOT / "srgan_fast"
of_tree = pytest.mark.skipif(not FROM_TREE, reason="records and the sources behind them are the tree's, not a wheel's")
_BESIDE = pytest.StashKey[Beside]()


def script(path: Path) -> ModuleType:
    """A script of the tree that is in no package, imported by its path."""
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[path.stem] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def one_line(result: tuple[int, str, str], code: int, said: str) -> None:
    """A command ended with a code, and said one line that has these words."""
    assert result[0] == code, result
    assert said in result[2]
    assert result[2].count("\n") == 1, result[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if torch.cuda.is_available():
        if find_spec("tensorrt") is None:
            for item in marked:
                if item.get_closest_marker("tensorrt"):
                    item.add_marker(pytest.mark.skip(reason="tensorrt is not installed"))
        return
    if os.environ.get("SRGAN_FAST_REQUIRE_GPU") == "1":
        raise pytest.UsageError("SRGAN_FAST_REQUIRE_GPU=1, but torch sees no GPU")
    for item in marked:
        item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    groups = groups_of(session.items)
    if groups and not session.testsfailed and not session.config.option.collectonly:
        beside = session.config.stash[_BESIDE] = Beside(groups)
        # What others run comes last: nobody waits for it before.
        session.items.sort(key=lambda item: item in beside)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    beside = item.config.stash.get(_BESIDE, None)
    if beside is None or item not in beside:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in beside.reports(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    # A test before this one may have left its module set up for it.
    item.session._setupstate.teardown_exact(nextitem)
    return True


def pytest_configure(config: pytest.Config) -> None:
    if FROM_TREE and os.environ.get("SRGAN_FAST_TEST_WHEEL") == "1":
        raise pytest.UsageError("SRGAN_FAST_TEST_WHEEL=1, but what is imported is the source tree, not a wheel")
    # A shell starts what runs in the background with Ctrl-C ignored, and so would what tests start and send it to.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.pluginmanager.register(_HandBack(config))


def pytest_unconfigure(config: pytest.Config) -> None:
    if _BESIDE in config.stash:
        config.stash[_BESIDE].stop()


class _HandBack:
    """The hook of a report knows no configuration, so it is kept here."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        hand_back(self._config, report)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where everything compiled is kept while the tests run: the user's own stays as it is."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SRGAN_FAST_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def eager_alone() -> Iterator[None]:
    """One backend is enough for most of what is tested of benches; test_backends_cpu has the rows of all."""
    from srgan_fast.backends import BACKENDS
    from srgan_fast.bench import frame, peers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frame, "BACKENDS", {"eager": BACKENDS["eager"]})
        patch.setattr(peers, "FIXED", ())
        yield


@pytest.fixture
def one_thread() -> Iterator[None]:
    """On networks and pictures this small threads only wait for one another, and more of them add in another order."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of benchmark images and community checkpoints, which the project does not ship."""
    folder = Path(os.environ.get("SRGAN_FAST_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no benchmark data: set SRGAN_FAST_SHARED_DATA to a folder that has Set5/ and weights/")
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random weights of a small x4 network."""
    import torch

    from srgan_fast import weights
    from srgan_fast.model import Generator, GeneratorConfig

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    weights.save(path, Generator(GeneratorConfig(blocks=2, width=8)), name="tiny", recipe={})
    return path


@pytest.fixture(params=("10.13.3.9", "11.4.0.106"))
def trt(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A double in the place of TensorRT, of either generation; its graphs have only addresses, as real ones."""
    import fake_runtime
    import fake_tensorrt

    from srgan_fast import graph

    fake = fake_tensorrt.install(monkeypatch, request.param)
    monkeypatch.setattr(graph, "capture", fake_runtime.capture)
    yield fake
    assert fake.seen.misuses == []


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command as a user gives it -> exit code, stdout, stderr, those of C libraries too; no traceback passes."""
    from srgan_fast.cli import main

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["srgan-fast", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return call
