"""Our kernels inside a TensorRT engine: the shipped PTX as ahead-of-time plugins.

TensorRT 10.9 and newer put a kernel's PTX into the engine and launch it by themselves; what runs
the engine needs neither Python nor Triton. `prepare` keeps the nodes that a shipped kernel can
stand in for and inlines all others; `register` tells TensorRT what these nodes are. Two layouts of
a tensor occur: LINEAR, the axes in the order of the ONNX value, and HWC8, pixel by pixel with
channels padded to a multiple of eight, which is how TensorRT's own FP16 convolutions like it.

Imports neither torch nor Triton. No plugin has ever run on a GPU.
"""

from __future__ import annotations

import functools
import importlib
import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from inspect import Parameter, Signature
from pathlib import Path
from types import GenericAlias
from typing import Any

import numpy as np
import onnx.inliner  # not reachable by `import onnx` alone
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from fastrestore.engine_record import TITLES, PluginRecord, Product
from fastrestore.errors import EngineError, ModelError
from fastrestore.kernels.shipped import FOLDER, Axis, PluginKernel, read_manifest

DOMAIN = "fastrestore"  # of the nodes, and TensorRT's plugin namespace
OLDEST = "10.9"  # the first TensorRT that takes PTX
TACTIC = 1  # one kernel a form; 0 would leave the tactic unset
_PICTURES = ("packed", "residual", "x", "y")  # HWC8; all others are LINEAR
_BLOCK = "ResidualBlockD"
_BLOCK_INPUTS = ("x", "w3", "b3", "w1", "b1")
_SUFFIX = "_ptr"
_FLOATS = (TensorProto.FLOAT, TensorProto.BFLOAT16, TensorProto.DOUBLE)


@dataclass(frozen=True, slots=True)
class Plugin:
    """One type of node and the kernels that can stand in for it.

    Attributes:
        name: Of the ONNX function, and of the plugin.
        kernels: By the channels of a residual block; the others have one, under 0.
    """

    name: str
    kernels: Mapping[int, PluginKernel]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs, as the function has them behind `Name/`."""
        return self._tensors[0]

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return self._tensors[1]

    @property
    def formats(self) -> tuple[str, ...]:
        """TensorRT's names of the layouts of inputs and outputs, in order."""
        return tuple(
            "HWC8" if name in _PICTURES else "LINEAR" for side in self._tensors for name in side
        )

    @property
    def _tensors(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Split a kernel's arguments at its scalars, where TensorRT puts its own."""
        arguments = next(iter(self.kernels.values())).arguments
        names = list(arguments)
        first = names.index(scalars(arguments)[0])
        sides = names[:first], names[first + len(scalars(arguments)) :]
        before, after = (tuple(n.removesuffix(_SUFFIX) for n in side) for side in sides)
        return before, after


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model for TensorRT's parser.

    Attributes:
        model: FP16; nodes are ONNX's own and plugins, no functions.
        kernels: What the plugins run, by the name of the kernel.
        wanted: Types of the plugin nodes, for `register`.
        inlined: Nodes that a plugin could have been and why they are none, a line a reason.
    """

    model: ModelProto
    kernels: Mapping[str, PluginKernel] = field(default_factory=dict)
    wanted: tuple[str, ...] = ()
    inlined: tuple[str, ...] = ()

    @property
    def records(self) -> dict[str, PluginRecord]:
        """What the engine's sidecar says of them."""
        return {name: PluginRecord(k.sha256, k.triton) for name, k in self.kernels.items()}


def scalars(arguments: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of a kernel's int32 arguments."""
    return tuple(name for name, kind in arguments.items() if kind == "i32")


def unavailable(product: Product, trt: Any, sm: str | None = None) -> str | None:
    """Say in one line why no plugin can be used and what happens instead; None if one can.

    Args:
        product: What builds the engine.
        trt: Its Python module.
        sm: Compute capability of the GPU, `8.7`; None = not known.
    """
    instead = f"the engine runs {TITLES[product]}'s own kernels"
    if product == "tensorrt_rtx":
        return f"plugins: TensorRT-RTX takes no kernels from outside; {instead}"
    if not hasattr(trt, "QuickPluginCreationRequest"):
        return f"plugins: TensorRT {trt.__version__} is older than {OLDEST}; {instead}"
    oldest = min(k.target.removeprefix("sm_") for k in read_manifest())
    needed = f"{oldest[:-1]}.{oldest[-1]}"
    if sm is not None and float(sm) < float(needed):
        return f"plugins: compute capability {sm} is below {needed}; {instead}"
    return None


def read_plugins(folder: Path = FOLDER) -> dict[str, Plugin]:
    """Return all plugins by their name, from the shipped kernels.

    Raises:
        ModelError: See `read_manifest`.
    """
    found: dict[str, dict[int, PluginKernel]] = {}
    for kernel in read_manifest(folder):
        constants = kernel.constants
        if "dilation" in constants:
            name, key = f"{_BLOCK}{constants['dilation']}", int(constants["channels"])
        else:
            name, key = "".join(word.title() for word in kernel.name.split("_")), 0
        found.setdefault(name, {})[key] = kernel
    return {name: Plugin(name, kernels) for name, kernels in found.items()}


def load() -> Any:
    """Import TensorRT's plugin module; call `unavailable` first.

    TensorRT prints once that the module is experimental.

    Raises:
        EngineError: It is not there, or does not import.
    """
    try:
        return importlib.import_module("tensorrt.plugin")
    except ImportError as e:
        raise EngineError(f"tensorrt.plugin: does not import ({e}); add --plugins off") from e


def prepare(model: ModelProto, plugins: Mapping[str, Plugin] | None = None) -> Prepared:
    """Make plugin nodes of what a shipped kernel can run, and inline the rest.

    Weights of plugin nodes are laid out as the kernels read them, so only a plugin can run the
    result: the function bodies of these nodes are removed, and a parser that knows no plugin says
    so instead of computing something else.

    Args:
        model: FP16 with functions, as `to_fp16` makes it; not changed.
        plugins: What there is; None = all that ship.

    Returns:
        The new model, its convolutions without those inside plugins. An inlined model comes back
        without plugins.

    Raises:
        EngineError: The model is not FP16.
        ModelError: A function cannot be inlined, or the shipped kernels are damaged.
    """
    _require_half(model)
    known = read_plugins() if plugins is None else plugins
    out = ModelProto()
    out.CopyFrom(model)
    weights = _Weights(out)
    bodies = {f.name: f for f in model.functions}
    kernels: dict[str, PluginKernel] = {}
    wanted: dict[str, None] = {}
    inlined: dict[str, None] = {}
    for node in out.graph.node:
        if node.domain != DOMAIN or node.op_type not in known:
            continue
        kernel, reason = _kernel(known[node.op_type], node, weights)
        if kernel is None:
            inlined[f"{node.op_type}: {reason}"] = None
            _rename(out, node, bodies)
            continue
        kernels[kernel.name] = kernel
        wanted[node.op_type] = None
        if node.op_type.startswith(_BLOCK):
            weights.lay_out(node)
    flat = _inline(out, wanted)
    return Prepared(flat, kernels, tuple(wanted), tuple(inlined))


def register(trtp: Any, wanted: Collection[str]) -> None:
    """Tell TensorRT of plugins; what it knows already is left alone.

    Args:
        trtp: TensorRT's plugin module, see `load`.
        wanted: Names, as `Prepared.wanted`.

    Raises:
        ModelError: The shipped kernels are damaged.
        EngineError: No kernel of that name ships, or TensorRT refuses it.
    """
    plugins = read_plugins()
    for name in wanted:
        if name not in plugins:
            raise EngineError(f"{name}: no kernel ships for it; add --plugins off")
        if hasattr(getattr(trtp.op, DOMAIN, None), name):
            continue
        try:
            _register(trtp, plugins[name])
        except (AttributeError, TypeError, ValueError) as e:
            reason = " ".join(str(e).split())
            raise EngineError(
                f"{name}: TensorRT does not take the plugin ({reason}); add --plugins off"
            ) from e


def _register(trtp: Any, plugin: Plugin) -> None:
    """Decorate the three functions of one plugin."""
    plugin_id = f"{DOMAIN}::{plugin.name}"
    tensors = [
        Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, annotation=trtp.TensorDesc)
        for name in plugin.inputs
    ]
    outputs, tactic = (Parameter(n, Parameter.POSITIONAL_OR_KEYWORD) for n in ("outputs", "tactic"))
    shapes = GenericAlias(tuple, (trtp.TensorDesc,) * len(plugin.outputs))
    launch = tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]

    def describe(*inputs: Any) -> tuple[Any, ...]:
        return _describe(trtp, dict(zip(plugin.inputs, inputs, strict=True)))

    def autotune(*_: Any) -> list[Any]:
        types = ", ".join(["FP16"] * len(plugin.formats))
        return [trtp.AutoTuneCombination(types, ", ".join(plugin.formats), [TACTIC])]

    def implement(*arguments: Any) -> tuple[str, str, Any, Any]:
        inputs = dict(zip(plugin.inputs, arguments, strict=False))
        return _implement(trtp, plugin, inputs)

    # TensorRT reads names and types of the arguments from the signature.
    trtp.register(plugin_id)(_signed(describe, tensors, shapes))
    trtp.autotune(plugin_id)(_signed(autotune, [*tensors, outputs], list[trtp.AutoTuneCombination]))
    trtp.aot_impl(plugin_id)(_signed(implement, [*tensors, outputs, tactic], launch))


def _signed(
    function: Callable[..., Any], parameters: list[Parameter], returns: Any
) -> Callable[..., Any]:
    function.__signature__ = Signature(parameters, return_annotation=returns)  # type: ignore[attr-defined]
    return function


def _describe(trtp: Any, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the outputs' shapes and types."""
    if "x" in inputs:
        return (inputs["x"].like(),)
    if "state" in inputs:  # PackFrame; one cell of the fill is one of the packed picture
        n, _, height, width = inputs["f"].shape_expr
        packed = trtp.from_shape_expr((n, 32, height, width), inputs["f"].dtype)
        return packed, inputs["state"].like()
    n, _, height, width = inputs["packed"].shape_expr
    return (trtp.from_shape_expr((n, height * 2, width * 2, 3), inputs["packed"].dtype),)


def _implement(trtp: Any, plugin: Plugin, inputs: Mapping[str, Any]) -> tuple[str, str, Any, Any]:
    """Return the kernel of these shapes and how it is launched."""
    channels = inputs["x"].shape_expr[1].constant_value() if "x" in inputs else 0
    kernel = plugin.kernels[channels]
    sizes = _sizes(inputs)
    launch = trtp.KernelLaunchParams()
    launch.grid_x, launch.grid_y, launch.grid_z = (_programs(trtp, a, sizes) for a in kernel.grid)
    launch.block_x, launch.shared_mem = kernel.block, kernel.shared
    extra = [trtp.SymInt32(sizes[name]) for name in scalars(kernel.arguments)]
    return kernel.entry, kernel.ptx, launch, trtp.SymIntExprs.from_tuple(extra)


def _sizes(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sizes that a kernel's grid and scalars name, as expressions."""
    if "x" in inputs:
        n, _, height, width = inputs["x"].shape_expr
    elif "frame" in inputs:
        n, height, width, _ = inputs["frame"].shape_expr
    else:
        n, _, height, width = inputs["packed"].shape_expr
        height, width = height * 2, width * 2
    return {"n": n, "height": height, "width": width, "pixels": n * height * width}


def _programs(trtp: Any, axis: Axis, sizes: Mapping[str, Any]) -> Any:
    if not axis.of:
        return 1
    total = functools.reduce(operator.mul, (sizes[name] for name in axis.of))
    return total if axis.per == 1 else trtp.cdiv(total, axis.per)


class _Weights:
    """The initialisers of a model and what becomes of those that plugins read."""

    def __init__(self, model: ModelProto) -> None:
        self._model = model
        self._tensors = {t.name: t for t in model.graph.initializer}

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of an initialiser, None if it is none."""
        return tuple(self._tensors[name].dims) if name in self._tensors else None

    def lay_out(self, node: NodeProto) -> None:
        """Give a residual block its weights as `kernels.residual_block.weights` would.

        The 3x3 becomes `(9 C, C)`: row `(ky * 3 + kx) * C + input`, column output; the 1x1
        `(C, C)`: input, output.
        """
        w3, w1 = (numpy_helper.to_array(self._tensors[node.input[i]]) for i in (1, 3))
        c = w3.shape[0]
        for i, array in ((1, w3.transpose(2, 3, 1, 0).reshape(9 * c, c)), (3, w1.reshape(c, c).T)):
            name = f"{node.input[i]}.plugin"
            if name not in self._tensors:
                tensor = numpy_helper.from_array(np.ascontiguousarray(array), name)
                self._model.graph.initializer.append(tensor)
                self._tensors[name] = tensor
            node.input[i] = name


def _kernel(plugin: Plugin, node: NodeProto, weights: _Weights) -> tuple[PluginKernel | None, str]:
    """Return a node's kernel, or None and the reason."""
    if (len(node.input), len(node.output)) != (len(plugin.inputs), len(plugin.outputs)):
        return None, f"with {len(node.input)} inputs (no past) no kernel ships"
    if not plugin.name.startswith(_BLOCK):
        return plugin.kernels[0], ""
    b3 = weights.shape(node.input[2])
    c = b3[0] if b3 else 0
    if tuple(map(weights.shape, node.input[1:])) != ((c, c, 3, 3), (c,), (c, c, 1, 1), (c,)):
        return None, "its weights are not constants of a square block"
    if c not in plugin.kernels:
        return None, f"at {c} channels no kernel ships"
    return plugin.kernels[c], ""


def _require_half(model: ModelProto) -> None:
    """Refuse a model of another type than the kernels'.

    Raises:
        EngineError: A weight or a cast of the main graph is not FP16.
    """
    wide = [t.name for t in model.graph.initializer if t.data_type in _FLOATS]
    wide += [
        node.name
        for node in model.graph.node
        if node.op_type == "Cast" and any(a.name == "to" and a.i in _FLOATS for a in node.attribute)
    ]
    if wide:
        raise EngineError(
            f"{wide[0]}: is not FP16, which plugins need; add --precision fp16 or --plugins off"
        )


def _rename(model: ModelProto, node: NodeProto, bodies: Mapping[str, Any]) -> None:
    """Let one call have a function of its own name, so that it can be inlined alone."""
    if node.op_type not in bodies:
        raise ModelError(f"{node.name}: {node.op_type} has neither kernel nor body; export again")
    name = f"{node.op_type}Inlined"
    if not any(f.name == name for f in model.functions):
        body = model.functions.add()
        body.CopyFrom(bodies[node.op_type])
        body.name = name
    node.op_type = name


def _inline(model: ModelProto, keep: Collection[str]) -> ModelProto:
    """Inline all functions but some, whose bodies go; drop weights that nothing reads."""
    kept = [(DOMAIN, name) for name in keep]
    flat: ModelProto = onnx.inliner.inline_selected_functions(model, kept, exclude=True)
    left = [f.name for f in flat.functions if f.name not in keep]
    if left:
        raise ModelError(f"{left[0]}: cannot be inlined; export the model again")
    del flat.functions[:]
    for i, node in enumerate(flat.graph.node):
        if node.domain != DOMAIN:
            node.name = f"{i}.{node.op_type}"
    read = {name for node in flat.graph.node for name in node.input}
    used = [t for t in flat.graph.initializer if t.name in read]
    del flat.graph.initializer[:]
    flat.graph.initializer.extend(used)
    return flat
