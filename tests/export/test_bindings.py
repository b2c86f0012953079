"""Every name of TensorRT's API that we use, and our plugins, against its real Python bindings.

`make bindings` fetches them, 1 MB a version; nothing of TensorRT itself is needed.
"""

from __future__ import annotations

import ast
import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fastrestore.export.plugins import read_plugins, scalars
from fastrestore.kernels.shipped import PluginKernel

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("FASTRESTORE_BINDINGS") or ROOT / ".bindings")
VERSIONS = ("10.3.0", "10.9.0.34", "10.16.1.11", "11.4.0.106")
WITH_PLUGINS = VERSIONS[1:]
# Files that touch TensorRT, and what their arguments are by name.
SOURCES: dict[str, dict[str, str]] = {
    "export/toolkit.py": {},
    "export/builder.py": {
        "builder": "Builder",
        "network": "INetworkDefinition",
        "config": "IBuilderConfig",
        "layer": "ILayer",
    },
    "export/plugins.py": {},
    "fastrestore/backends/engine_load.py": {},
    "fastrestore/backends/engine_lane.py": {},
    "fastrestore/backends/rtx_cache.py": {"engine": "ICudaEngine"},
}
LINKS = ("fastrestore/export/", "fastrestore/kernels/", "fastrestore/train/")
RTX_FILES = {"fastrestore/backends/rtx_cache.py"}
# What a call makes.
MAKERS = {
    "create_network": "INetworkDefinition",
    "create_builder_config": "IBuilderConfig",
    "create_optimization_profile": "IOptimizationProfile",
    "create_timing_cache": "ITimingCache",
    "get_timing_cache": "ITimingCache",
    "get_layer": "ILayer",
    "get_input": "ITensor",
    "get_error": "ParserError",
    "deserialize_cuda_engine": "ICudaEngine",
    "create_execution_context": "IExecutionContext",
    "new_context": "IExecutionContext",  # ours
    "create_engine_inspector": "EngineInspector",
    "create_runtime_config": "IRuntimeConfig",
    "create_runtime_cache": "IRuntimeCache",
}
# A layer gets its typed class by assignment: what is read of it afterwards is that class's.
LAYERS = ("ILayer", "IConvolutionLayer", "IDeconvolutionLayer")
# Looked up by a text, which no reader sees.
BY_TEXT = {
    "IConvolutionLayer",
    "IDeconvolutionLayer",
    "LayerType.CONVOLUTION",
    "LayerType.DECONVOLUTION",
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
}
# Used behind a question for the product.
RTX_ONLY = {
    "ComputeCapability",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
}
TENSORRT_ONLY = {"plugin"}


@dataclass(slots=True)
class Uses:
    """What one file asks of TensorRT: names, and those it asks for with `hasattr` first."""

    names: set[str] = field(default_factory=set)
    guarded: set[str] = field(default_factory=set)


class Reader(ast.NodeVisitor):
    """Follows the module and its objects through a file. A type is a path in the module."""

    def __init__(self, names: dict[str, str]) -> None:
        self.uses = Uses()
        self._fields: dict[str, str] = {}  # self.x
        self._locals = names

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outside, self._locals = self._locals, dict(self._locals)
        self.generic_visit(node)
        self._locals = outside

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                for name, value in zip(target.elts, node.value.elts, strict=False):
                    self._assign(name, value)
            else:
                self._assign(target, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.generic_visit(node)
        if node.value is not None:
            self._assign(node.target, node.value)

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id in ("hasattr", "getattr"):
            kind, asked = self._kind(node.args[0]), node.args[1]
            if kind is not None and isinstance(asked, ast.Constant):
                fails = node.func.id == "getattr" and len(node.args) == 2
                (self.uses.names if fails else self.uses.guarded).add(_join(kind, asked.value))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.generic_visit(node)
        kind = self._kind(node.value)
        if kind is not None and not node.attr.startswith("__"):
            self.uses.names.add(_join(kind, node.attr))

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        kind = self._kind(value)
        if kind and isinstance(target, ast.Name):
            self._locals[target.id] = kind
        elif kind and isinstance(target, ast.Attribute):
            self._fields[target.attr] = kind

    def _kind(self, node: ast.expr) -> str | None:
        """Return what an expression is in the module; '' = the module, None = not of it."""
        if isinstance(node, ast.Call):
            made = MAKERS.get(node.func.attr) if isinstance(node.func, ast.Attribute) else None
            return made or self._kind(node.func) or None
        name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", None)
        if name in ("trt", "_trt"):
            return ""
        if name == "trtp":
            return "plugin"
        if isinstance(node, ast.Name):
            return self._locals.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = self._kind(node.value)
            if owner is None:
                return self._fields.get(node.attr)
            return _join(owner, node.attr) if node.attr[0].isupper() else None
        return None


def _join(kind: str, name: object) -> str:
    return f"{kind}.{name}" if kind else str(name)


@functools.cache
def uses_of(source: str) -> Uses:
    tree = ast.parse((ROOT / source).read_text(encoding="utf-8"))
    reader = Reader(SOURCES.get(source, {}))
    reader.visit(tree)
    reader.visit(tree)  # methods may stand before what fills their fields
    return reader.uses


@functools.cache
def every_use(rtx: bool = False) -> tuple[frozenset[str], frozenset[str]]:
    """Names that must be there, and names that are asked for first."""
    found = [uses_of(s) for s in SOURCES if rtx or s not in RTX_FILES]
    needed = frozenset(BY_TEXT).union(*(u.names - u.guarded for u in found))
    return needed, frozenset().union(*(u.guarded for u in found)) - needed


def missing(names: frozenset[str], api: dict[str, list[str]]) -> set[str]:
    """Return those names that a version of the bindings does not have."""
    gone = set()
    for name in names:
        owner, _, member = name.rpartition(".")
        owners = LAYERS if owner == "ILayer" else (owner,)
        if not any(member in api.get(o, ()) for o in owners):
            gone.add(name)
    return gone


def shapes_of(name: str, channels: int) -> list[list[int]]:
    """Shapes of a plugin's inputs, at a size that no block of the grid divides."""
    n, h, w, c = 2, 24, 72, channels
    if name == "PackFrame":
        fill, motion = [n, 4, h // 2, w // 2], [n, 1, h // 8, w // 8]
        return [[n, h, w, 3], [n, h, w, 1], [n, h, w, 4], [n, 1, 1, 1], fill, motion]
    if name == "UnpackFrame":
        return [[n, 12, h // 2, w // 2], [n, 32, h // 2, w // 2]]
    return [[n, c, h, w], [9 * c, c], [c], [c, c], [c]]


def widest() -> dict[str, int]:
    return {name: max(plugin.kernels) for name, plugin in read_plugins().items()}


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stubs")


@functools.cache
def probe(version: str, stubs: Path) -> dict[str, Any]:
    """What `stub_bindings.py` finds in one version, in a process of its own."""
    place = FOLDER / version
    if not (place / "tensorrt_bindings").is_dir():
        pytest.skip(f"{place}: no bindings of TensorRT {version}; run `make bindings`")
    if shutil.which("cc") is None:
        pytest.skip("no C compiler `cc` for the three stub libraries")
    wanted = json.dumps({name: shapes_of(name, c) for name, c in widest().items()})
    script = Path(__file__).with_name("stub_bindings.py")
    out = subprocess.run(
        [sys.executable, str(script), str(place), str(stubs), wanted],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.returncode == 0, out.stderr
    found: dict[str, Any] = json.loads(out.stdout.splitlines()[-1])
    assert found["version"] == version
    return found


def test_names_are_found_in_source() -> None:
    """The reader sees through variables, tuples, classes and questions."""
    names, guarded = every_use()
    assert {
        "Builder",
        "ILogger.Severity.WARNING",
        "INetworkDefinition.num_inputs",
        "IBuilderConfig.add_optimization_profile",
        "IOptimizationProfile.set_shape",
        "ILayer.dilation_nd",
        "plugin.KernelLaunchParams",
    } <= names
    assert "QuickPluginCreationRequest" in guarded
    assert names >= RTX_ONLY
    text = "".join((ROOT / s).read_text() for s in SOURCES)
    assert all(f'"{name.rpartition(".")[2]}"' in text for name in BY_TEXT)


def test_no_file_is_left_out() -> None:
    for part in ("export", "fastrestore"):
        for path in sorted((ROOT / part).rglob("*.py")):
            source = path.relative_to(ROOT).as_posix()
            if not source.startswith(LINKS):
                assert source in SOURCES or not uses_of(source).names, source


@pytest.mark.parametrize("version", VERSIONS)
def test_every_name_that_we_use_is_there(version: str, stubs: Path) -> None:
    names, _ = every_use()
    if version not in WITH_PLUGINS:
        names = frozenset(n for n in names if not n.startswith("plugin"))
    assert missing(names, probe(version, stubs)["api"]) == RTX_ONLY


def test_every_name_that_we_ask_for_is_in_some_version(stubs: Path) -> None:
    _, guarded = every_use()
    apis = [probe(version, stubs)["api"] for version in VERSIONS]
    apis.append(rtx_api())
    nowhere = set.intersection(*(missing(guarded, api) for api in apis))
    assert nowhere == set()


def rtx_api() -> dict[str, list[str]]:
    trt = pytest.importorskip(
        "tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install tensorrt-rtx-cu12"
    )
    api = {"": dir(trt)}
    for name in dir(trt):
        if isinstance(getattr(trt, name), type):
            api[name] = dir(getattr(trt, name))
    api["ILogger.Severity"] = dir(trt.ILogger.Severity)
    return api


def test_every_name_that_we_use_is_in_rtx() -> None:
    names, _ = every_use(rtx=True)
    gone = missing(names, rtx_api())
    assert {n.partition(".")[0] for n in gone} <= TENSORRT_ONLY, gone


@pytest.mark.parametrize("version", VERSIONS)
def test_logger_monitor_and_flags_work(version: str, stubs: Path) -> None:
    kit = probe(version, stubs)["kit"]
    assert kit["lines"] == [["ERROR"], ["WARNING"]]
    assert kit["step"] is True
    assert kit["flags"] == sum(kit["bits"])
    assert len(set(kit["bits"])) == (2 if version in WITH_PLUGINS else 1)


def test_the_version_without_plugins_says_so(stubs: Path) -> None:
    found = probe("10.3.0", stubs)
    assert "10.3.0 is older than 10.9" in found["unavailable"]
    assert "lives" not in found


def lives(stubs: Path, version: str) -> Iterator[tuple[str, PluginKernel, dict[str, Any]]]:
    found = probe(version, stubs)
    assert found["unavailable"] is None
    assert set(found["lives"]) == set(widest())
    for name, life in found["lives"].items():
        yield name, read_plugins()[name].kernels[widest()[name]], life


@pytest.mark.parametrize("version", WITH_PLUGINS)
def test_plugins_are_taken_with_their_layouts(version: str, stubs: Path) -> None:
    for name, _, life in lives(stubs, version):
        plugin = read_plugins()[name]
        assert life["formats"] == list(plugin.formats)
        assert set(life["types"]) == {"HALF"}
        assert life["tactic"] > 0  # 0 is TensorRT's own default


@pytest.mark.parametrize("version", WITH_PLUGINS)
def test_outputs_have_the_shapes_of_the_functions(version: str, stubs: Path) -> None:
    n, h, w = 2, 24, 72
    ends = {
        "PackFrame": [[n, 32, h // 2, w // 2], [n, h, w, 4]],
        "UnpackFrame": [[n, h, w, 3]],
    }
    for name, _, life in lives(stubs, version):
        assert life["outputs"] == ends.get(name, [[n, widest()[name], h, w]])


@pytest.mark.parametrize("version", WITH_PLUGINS)
def test_launches_are_those_of_the_manifest(version: str, stubs: Path) -> None:
    n, h, w = 2, 24, 72
    sizes = {"n": n, "height": h, "width": w, "pixels": n * h * w}
    for _, kernel, life in lives(stubs, version):
        assert (life["kernel"], life["ptx"]) == (kernel.entry, kernel.ptx)
        x, y, z = (axis.at(sizes) for axis in kernel.grid)
        assert life["launch"] == {
            "grid_x": x,
            "grid_y": y,
            "grid_z": z,
            "block_x": kernel.block,
            "block_y": 1,
            "block_z": 1,
            "shared_mem": kernel.shared,
        }
        assert life["scalars"] == [sizes[s] for s in scalars(kernel.arguments)]
