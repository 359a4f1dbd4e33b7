"""For maintainers: is all of TensorRT that typings/tensorrt declares in the real bindings, and as declared?

    python tools/check_trt_api.py tensorrt_cu13_bindings-*.whl
    python tools/check_trt_api.py --fetch 10.13.3.9.post1 11.4.0.106

A wheel of the bindings alone is a megabyte, but loads only beside libraries of gigabytes. Of those it asks for nine
functions before anything is built: libraries of nine functions that return nothing let it load, with all its classes,
docstrings and enumerations. They are compiled with gcc, and run in a process of their own: what is really built there
would end it. The wheels are for one version of Python, that of whoever runs this. Nothing of them is kept.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DECLARED = Path(__file__).parent.parent / "typings" / "tensorrt" / "__init__.pyi"
PACKAGE = "tensorrt-cu13-bindings"
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
FUNCTIONS = (
    *("createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL"),
    *("createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getBuilderPluginRegistry"),
    *("getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins"),
)
# The buffer protocol of C has no name in Python before 3.12.
UNSEEN = {"IHostMemory.__buffer__"}
# The bindings' names for what has another one in Python.
SAME = {"List": "list", "Sequence": "list", "SupportsInt": "int", "buffer": "Buffer", "IParserError": "ParserError"}

# In a process that can load the bindings: what each name is, and what its docstring says of it.
LOOK = """
import importlib, json, sys
sys.path.insert(0, sys.argv[1])
trt = importlib.import_module("tensorrt_bindings")
found = {}
for name in json.load(sys.stdin):
    thing = trt
    for part in name.split("."):
        owner, thing = thing, getattr(thing, part, None)
    if thing is None:
        found[name] = None
    elif isinstance(thing, property):
        found[name] = {"kind": "property", "settable": thing.fset is not None, "said": thing.fget.__doc__ or ""}
    elif callable(thing) and not isinstance(thing, type):
        found[name] = {"kind": "method", "said": thing.__doc__ or ""}
    else:
        found[name] = {"kind": "value", "said": ""}

class Logger(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
    def log(self, severity, msg):
        pass

class Monitor(trt.IProgressMonitor):
    def __init__(self):
        trt.IProgressMonitor.__init__(self)

Logger(), Monitor()
assert trt.Dims((1, 2, 3, 4))[:] == (1, 2, 3, 4)
assert len({trt.DataType.UINT8, trt.DataType.UINT8, trt.DataType.FLOAT}) == 2
flag = int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
print(json.dumps({"version": trt.__version__, "found": found, "flag": flag}))
"""


@dataclass(frozen=True)
class Declared:
    """A name of the stub file: what kind of thing it is, and for a method its parameters and what it returns."""

    kind: str
    parameters: tuple[tuple[str, str, bool], ...] = ()  # name, type, whether it has a default
    returns: str = ""

    def __str__(self) -> str:
        parts = (f"{name}: {kind}" + " = ..." * default for name, kind, default in self.parameters)
        return f"({', '.join(parts)}) -> {self.returns}"


def declared() -> dict[str, Declared]:
    """Everything in the stub file, by its name with that of its class."""
    found = {"__version__": Declared("value")}

    def walk(scope: ast.ClassDef, path: str) -> None:
        found[path] = Declared("value")
        for node in scope.body:
            if isinstance(node, ast.ClassDef):
                walk(node, f"{path}.{node.name}")
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                kind = "value" if ast.unparse(node.annotation).startswith("ClassVar") else "settable"
                found[f"{path}.{node.target.id}"] = Declared(kind)
            elif isinstance(node, ast.FunctionDef):
                found[f"{path}.{node.name}"] = _function(node)

    for node in ast.parse(DECLARED.read_text()).body:
        if isinstance(node, ast.ClassDef):
            walk(node, node.name)
    return {name: about for name, about in found.items() if name not in UNSEEN}


def _function(node: ast.FunctionDef) -> Declared:
    if any(isinstance(each, ast.Name) and each.id == "property" for each in node.decorator_list):
        return Declared("property", returns=_outer(ast.unparse(node.returns)) if node.returns else "")
    arguments = node.args.args[1:]
    bare = len(arguments) - len(node.args.defaults)
    parameters = tuple(
        (each.arg, _outer(ast.unparse(each.annotation)) if each.annotation else "", i >= bare)
        for i, each in enumerate(arguments)
    )
    return Declared("method", parameters, _outer(ast.unparse(node.returns)) if node.returns else "")


def _outer(annotation: str) -> str:
    """The last name of a type, without what is in brackets: what the stub and a docstring can have in common."""
    plain = re.sub(r"\[.*\]", "", annotation.split("=")[0]).replace("| None", "").strip()
    name = re.split(r"[.:]+", plain)[-1].strip()
    return SAME.get(name, name)


def _signatures(said: str, name: str) -> list[Declared]:
    """The overloads that a docstring of pybind11 lists."""
    found = []
    for line in said.splitlines():
        match = re.search(rf"(?:^|\d\. ){re.escape(name)}\((.*)\) -> (.+)$", line.strip())
        if match and "*args" not in match[1]:
            parts = re.split(r", (?=\w+: )", match[1])[1:]  # without self
            pairs = [part.split(": ", 1) for part in parts]
            parameters = tuple((each, _outer(kind), "=" in kind) for each, kind in pairs)
            found.append(Declared("method", parameters, _outer(match[2])))
    return found


def complaint(name: str, want: Declared, got: dict[str, Any] | None) -> str | None:
    """What of a declaration is not so in the bindings."""
    if got is None:
        return "is not there"
    if want.kind == "settable":
        return None if got.get("settable") else "cannot be set"
    if want.kind == "property":
        returns = _outer(got["said"].split("->")[-1]) if "->" in got["said"] else ""
        same = got["kind"] == "property" and returns == want.returns
        return None if same else f"is a {got['kind']} of {returns}, not a property of {want.returns}"
    if want.kind == "method":
        offers = _signatures(got["said"], name.rsplit(".", 1)[-1])
        if not any(_fits(want, offer) for offer in offers):
            return f"is not as declared, but {' or '.join(map(str, offers)) or got['kind']}"
    return None


def _fits(want: Declared, offer: Declared) -> bool:
    """Whether all calls that the declaration allows are allowed by an overload."""
    count = len(want.parameters)
    same = all(
        mine[:2] == theirs[:2] and mine[2] <= theirs[2]
        for mine, theirs in zip(want.parameters, offer.parameters, strict=False)
    )
    rest = all(default for _, _, default in offer.parameters[count:])
    return count <= len(offer.parameters) and same and rest and want.returns == offer.returns


def look(wheel: Path, names: list[str], folder: Path) -> dict[str, Any]:
    """Load a wheel's bindings beside empty libraries, and ask them for names."""
    zipfile.ZipFile(wheel).extractall(folder / "site")
    (binary,) = (folder / "site").glob("tensorrt_bindings/tensorrt*.so")
    source = folder / "nothing.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in FUNCTIONS))
    for library in LIBRARIES:
        # The name that the bindings ask for has the version in it.
        (soname,) = set(re.findall(rb"lib%s\.so\.\d+" % library.encode(), binary.read_bytes()))
        output = folder / soname.decode()
        subprocess.run(
            ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{soname.decode()}", "-o", str(output), str(source)], check=True
        )
    result = subprocess.run(
        [sys.executable, "-c", LOOK, str(folder / "site")],
        input=json.dumps(names),
        env={**os.environ, "LD_LIBRARY_PATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise SystemExit(f"{wheel.name} cannot be loaded:\n{result.stderr}")
    return json.loads(result.stdout)


def main() -> int:
    """Print what of the stub file is not so in each wheel; 1 if there is anything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", nargs="*", type=Path, help="wheels of TensorRT's Python bindings")
    parser.add_argument("--fetch", nargs="*", default=[], metavar="VERSION", help=f"versions of {PACKAGE} to download")
    options = parser.parse_args()
    wanted, failed = declared(), 0
    with tempfile.TemporaryDirectory() as temporary:
        fetched = Path(temporary) / "wheels"
        for version in options.fetch:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(fetched)]
            subprocess.run([*command, f"{PACKAGE}=={version}"], check=True)
        wheels = [*options.wheels, *sorted(fetched.glob("*.whl"))]
        if not wheels:
            parser.error("expected wheels, or --fetch with versions")
        for i, wheel in enumerate(wheels):
            folder = Path(temporary) / str(i)
            folder.mkdir()
            answer = look(wheel, list(wanted), folder)
            complaints = {name: complaint(name, about, answer["found"][name]) for name, about in wanted.items()}
            said = [f"  {name} {text}" for name, text in complaints.items() if text]
            failed += len(said)
            print(f"TensorRT {answer['version']}: {len(wanted) - len(said)} of {len(wanted)} names are as declared")
            print(f"  STRONGLY_TYPED is bit {answer['flag']}")
            print("\n".join(said), end="\n" if said else "")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
