"""TensorRT's own Python bindings without TensorRT: one version a process, findings as JSON.

    python stub_bindings.py BINDINGS STUBS SHAPES

The module of the bindings is linked to three libraries but takes nine C functions from them. Empty
libraries with these functions are enough to import it: classes, enumerations and the whole of
`tensorrt.plugin` work, and only what would need the library returns nothing. Then our plugins are
registered and led through the life that the builder gives them, with numbers for expressions.

BINDINGS: where pip put `tensorrt-cu12-bindings`. STUBS: an empty folder, or one of an earlier run.
SHAPES: JSON, plugin's name to the shapes of its inputs. Needs a C compiler, `cc`.
"""

from __future__ import annotations

import ctypes
import importlib
import inspect
import json
import operator
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FUNCTIONS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
LIBRARIES = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")


def load(bindings: Path, stubs: Path) -> Any:
    """Import a version of the bindings and return it as `tensorrt`."""
    package = bindings / "tensorrt_bindings"
    found = re.search(rb"libnvinfer\.so\.(\d+)", (package / "tensorrt.so").read_bytes())
    assert found is not None, f"{package}: is not linked to libnvinfer"
    for name in LIBRARIES:
        ctypes.CDLL(str(_stub(stubs, f"{name}.so.{found[1].decode()}")), mode=ctypes.RTLD_GLOBAL)
    sys.path.insert(0, str(bindings))
    trt = importlib.import_module("tensorrt_bindings")
    sys.modules["tensorrt"] = trt  # the package of that name re-exports these names
    if (package / "plugin").is_dir():
        trt.plugin = importlib.import_module("tensorrt_bindings.plugin")
        sys.modules["tensorrt.plugin"] = trt.plugin
    return trt


def _stub(folder: Path, name: str) -> Path:
    library = folder / name
    if not library.exists():
        source = folder / "stub.c"
        source.write_text("".join(f"void *{f}(void) {{ return 0; }}\n" for f in FUNCTIONS))
        options = ["-shared", "-fPIC", f"-Wl,-soname,{name}"]
        command = ["cc", *options, str(source), "-o", str(library)]
        subprocess.run(command, check=True)
    return library


def api(trt: Any) -> dict[str, list[str]]:
    """Return every class with its members, nested ones with a dot, and the module under ''."""

    def walk(owner: Any, prefix: str) -> Iterator[tuple[str, list[str]]]:
        for name, value in inspect.getmembers(owner, inspect.isclass):
            if not name.startswith("_"):
                yield prefix + name, dir(value)
                if not prefix:
                    yield from walk(value, f"{name}.")

    return {"": dir(trt), **dict(walk(trt, ""))}


class Registry:
    """TensorRT's registry of plugins, which the stubs lack."""

    def __init__(self) -> None:
        self.creators: dict[tuple[str, str], Any] = {}

    def register_creator(self, creator: Any, namespace: str) -> None:
        assert (namespace, creator.name) not in self.creators
        self.creators[namespace, creator.name] = creator

    def get_creator(self, name: str, version: str, namespace: str) -> Any:
        creator = self.creators[namespace, name]
        assert creator.plugin_version == version
        return creator


class Expressions:
    """TensorRT's builder of expressions, on plain numbers."""

    def __init__(self, trt: Any) -> None:
        class Expression(trt.IDimensionExpr):  # type: ignore[misc]
            number: int

            def is_constant(self) -> bool:
                return True

            def get_constant_value(self) -> int:
                return self.number

        kinds = trt.DimensionOperation
        self._new = lambda: Expression.__new__(Expression)  # it has no constructor
        self._operations: dict[Any, Any] = {
            kinds.SUM: operator.add,
            kinds.PROD: operator.mul,
            kinds.CEIL_DIV: lambda a, b: -(-a // b),
        }

    def constant(self, number: int) -> Any:
        expression = self._new()
        expression.number = number
        return expression

    def operation(self, kind: Any, first: Any, second: Any) -> Any:
        return self.constant(self._operations[kind](first.number, second.number))


class Holder(dict[int, int]):
    """Takes what TensorRT would take: launch parameters, and scalars by their position."""


def describe(trt: Any, shape: tuple[int, ...], layout: Any) -> Any:
    """Return an FP16 tensor as the builder describes it."""
    desc = trt.DynamicPluginTensorDesc()
    desc.desc.dims = desc.min = desc.opt = desc.max = trt.Dims(shape)
    desc.desc.type, desc.desc.format = trt.DataType.HALF, layout
    return desc


def live(trt: Any, creator: Any, shapes: list[tuple[int, ...]]) -> dict[str, Any]:
    """Lead one plugin from its creation to its launch, as the builder does."""
    numbers, half, count = Expressions(trt), trt.DataType.HALF, len(shapes)
    plugin = creator.create_plugin(
        creator.name,
        "fastrestore",
        trt.PluginFieldCollection([]),
        trt.TensorRTPhase.BUILD,
        trt.QuickPluginCreationRequest.STRICT_AOT,
    )
    types = plugin.get_output_data_types([half] * count, [len(s) for s in shapes])
    given = [[numbers.constant(d) for d in shape] for shape in shapes]
    made = [tuple(e.number for e in x) for x in plugin.get_output_shapes(given, [], numbers)]
    tensors = [describe(trt, s, trt.TensorFormat.LINEAR) for s in (*shapes, *made)]
    forms = plugin.get_supported_format_combinations(tensors, count)
    for tensor, form in zip(tensors, forms, strict=True):
        tensor.desc.format = form.format
    plugin.configure_plugin(tensors[:count], tensors[count:])
    (tactic,) = plugin.get_valid_tactics()
    plugin = plugin.clone()
    plugin.set_tactic(tactic)
    launch, scalars = Holder(), Holder()
    plugin.get_launch_params(given, tensors, count, launch, scalars, numbers)
    descs = [t.desc for t in tensors]
    name, ptx = plugin.get_kernel(descs[:count], descs[count:])
    return {
        "types": [t.name for t in (*types, *(f.type for f in forms))],
        "outputs": made,
        "formats": [f.format.name for f in forms],
        "tactic": tactic,
        "launch": vars(launch),
        "scalars": [scalars[i] for i in range(len(scalars))],
        "kernel": name,
        "ptx": ptx.decode(),
    }


def lives(trt: Any, shapes: dict[str, list[list[int]]]) -> dict[str, Any]:
    """Register our plugins twice and lead each through its life."""
    from fastrestore.export import plugins

    registry = Registry()
    trt.get_plugin_registry = lambda: registry
    trt.DimsExprs = lambda count: [None] * count  # the real one holds pointers
    plugins.register(plugins.load(), list(shapes))
    plugins.register(plugins.load(), list(shapes))
    symbol = sys.modules["tensorrt_bindings.plugin._tensor"].SymInt32
    real = symbol.__call__

    def number(self: Any) -> int:
        real(self)  # its checks; what it returns can only be read by TensorRT
        return int(self._expr.number)

    symbol.__call__ = number
    return {
        name: live(trt, registry.creators["fastrestore", name], [tuple(s) for s in given])
        for name, given in shapes.items()
    }


def kit(trt: Any) -> dict[str, Any]:
    """Make what `export.toolkit` derives from TensorRT's classes, and use it."""
    from fastrestore.export.toolkit import Lines, Toolkit

    class Steps:
        phase_start = step_complete = phase_finish = staticmethod(lambda *_: True)

    toolkit, lines = Toolkit("tensorrt", trt, trt.__version__), Lines()
    severity = trt.ILogger.Severity
    logger = toolkit.logger(lines)
    for level in (severity.ERROR, severity.WARNING, severity.INFO):
        logger.log(level, level.name)
    monitor = toolkit.monitor(Steps())
    monitor.phase_start("root", None, 1)
    done = monitor.step_complete("root", 0)
    monitor.phase_finish("root")
    aot = ["PREFER_AOT_PYTHON_PLUGINS"] if hasattr(trt, "plugin") else []
    return {
        "lines": [lines.errors, lines.warnings],
        "step": done,
        "flags": toolkit.network_flags(*aot),
        "bits": [
            1 << int(getattr(trt.NetworkDefinitionCreationFlag, n))
            for n in ("STRONGLY_TYPED", *aot)
        ],
    }


def main() -> None:
    """Print what was found."""
    from fastrestore.export.plugins import unavailable

    trt = load(Path(sys.argv[1]), Path(sys.argv[2]))
    found = {"version": trt.__version__, "api": api(trt), "kit": kit(trt)}
    found["unavailable"] = unavailable("tensorrt", trt, "8.7")
    if hasattr(trt, "plugin"):
        found["api"] |= {f"plugin.{k}".rstrip("."): v for k, v in api(trt.plugin).items()}
        launch = trt.plugin.KernelLaunchParams()  # its class does not name its fields
        found["api"]["plugin.KernelLaunchParams"] = dir(launch)
        found["lives"] = lives(trt, json.loads(sys.argv[3]))
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
