"""From an ONNX graph to a serialised engine: parse, compare, size, build; cancelled by Ctrl+C.

A build that succeeds proves little: the parser can drop a dilation without a message. So the
convolutions of the parsed network are compared with those of the graph.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from onnx import ModelProto

from fastrestore.engine_record import Dims
from fastrestore.errors import EngineError, OutputError
from fastrestore.export.precision import Convolution, convolutions
from fastrestore.export.progress import Progress
from fastrestore.export.timings import read_timings, write_timings
from fastrestore.export.toolkit import Lines, Toolkit, explain, is_known

Profile = Mapping[str, tuple[Dims, Dims, Dims]]
Size = tuple[int, int, int]  # frames, height, width
T = TypeVar("T")
OPT_LEVEL = 3  # level 5 takes from half an hour to an hour and a half for small networks
NO_KERNEL = "Could not find any implementation"
GRACE_S = 1.5  # a step that lasts longer is left behind: nothing of it is on disk
_POLL_S = 0.1
_SHOWN = 3


class AbandonedError(KeyboardInterrupt):
    """The build was interrupted and its library has not come back yet: end the process hard."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to build, beside the graph and its sizes.

    Attributes:
        opt_level: 0 to 5.
        workspace_bytes: Scratch memory of one layer at most; None = the library's own limit.
        timing_cache: File of earlier timings, read and written; None = none. TensorRT only.
        capabilities: TensorRT-RTX: compute capabilities such as `8.9`; empty = 8.0 and newer.
        windows: TensorRT-RTX: build for Windows.
        plugins: Types of the nodes that are plugins.
    """

    opt_level: int = OPT_LEVEL
    workspace_bytes: int | None = None
    timing_cache: Path | None = None
    capabilities: tuple[str, ...] = ()
    windows: bool = False
    plugins: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Built:
    """A serialised engine.

    Attributes:
        data: The engine.
        seconds: Wall time of parsing and building.
        opt_level: That it was built with at last.
        heard: What the library said that a user should hear, a line each.
    """

    data: bytes
    seconds: float
    opt_level: int
    heard: tuple[str, ...]


def profile_of(model: ModelProto, low: Size, best: Size, high: Size) -> Profile:
    """Return the shapes of every input of a graph.

    Args:
        model: Inputs are `(N, H, W, C)` or `(N,)`.
        low: Smallest.
        best: What it is tuned for.
        high: Largest.
    """
    profile = {}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        channels = (dims[-1].dim_value,)
        shapes = [s[:1] if len(dims) == 1 else s + channels for s in (low, best, high)]
        profile[value.name] = (shapes[0], shapes[1], shapes[2])
    return profile


def flag_names(has_plugins: bool) -> tuple[str, ...]:
    """Return the names of the flags that a network is created with."""
    return ("STRONGLY_TYPED", *(["PREFER_AOT_PYTHON_PLUGINS"] * has_plugins))


def build(
    toolkit: Toolkit,
    model: ModelProto,
    profile: Profile,
    settings: Settings,
    progress: Progress | None = None,
    around: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Built:
    """Build an engine; a KeyboardInterrupt meanwhile cancels it.

    If no kernel is found for a layer, it is tried once more with the library's own limit of
    workspace and level 3.

    Args:
        toolkit: The library.
        model: Without functions; nodes that are plugins are registered.
        profile: See `profile_of`.
        settings: How.
        progress: Is told; None = nobody.
        around: Entered in the thread that builds: makes a device its current one.

    Raises:
        EngineError: It cannot be built; one line with cause and mend.
        KeyboardInterrupt: Cancelled.
        AbandonedError: Cancelled, but the library is still at work in its thread.
    """
    watch = progress or Progress()
    began = time.monotonic()
    lines = Lines()
    more: list[str] = []

    def work() -> tuple[bytes, int]:
        with around():
            try:
                return _build(toolkit, model, profile, settings, watch, lines), settings.opt_level
            except EngineError:
                easier = replace(settings, opt_level=OPT_LEVEL, workspace_bytes=None)
                if easier == settings or not is_known(lines.errors, NO_KERNEL):
                    raise
            lines.errors.clear()
            more.append("a layer found no kernel: built again with all memory and level 3")
            return _build(toolkit, model, profile, easier, watch, lines), OPT_LEVEL

    data, level = _cancellable(work, watch)
    return Built(data, time.monotonic() - began, level, (*more, *lines.summary()))


def _cancellable(work: Callable[[], T], progress: Progress) -> T:
    """Run in a thread of its own: the library holds it for seconds, and Ctrl+C must not wait.

    An event is waited for, not the thread: in Python 3.11 a `join` that Ctrl+C interrupts takes a
    running thread for one that has ended, and the process then dies under it.
    """
    done: list[T] = []
    failed: list[BaseException] = []
    ended = threading.Event()

    def run() -> None:
        try:
            done.append(work())
        except BaseException as e:
            failed.append(e)
        finally:
            ended.set()

    try:
        threading.Thread(target=run, name="build-engine", daemon=True).start()
        while not ended.wait(_POLL_S):
            pass
    except BaseException as e:
        progress.cancel()
        if not ended.wait(GRACE_S):
            raise AbandonedError from e
        raise
    if failed:
        raise failed[0]
    return done[0]


def _build(
    toolkit: Toolkit,
    model: ModelProto,
    profile: Profile,
    settings: Settings,
    progress: Progress,
    lines: Lines,
) -> bytes:
    trt, log = toolkit.trt, toolkit.logger(lines)
    builder = trt.Builder(log)
    network, parser = _parse(toolkit, builder, log, model, settings, lines)
    config = builder.create_builder_config()
    cache = _configure(toolkit, config, settings, lines)
    _size(builder, network, config, profile, lines)
    monitor = toolkit.monitor(progress)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    del parser  # it owns the weights until here
    if progress.failure is not None:
        raise progress.failure
    if plan is None and progress.is_cancelled:
        raise EngineError(explain(["BuildCanceled"], "cancelled"))
    _refuse_warnings(lines)
    if plan is None:
        raise EngineError(explain(lines.errors, f"{toolkit.title} built nothing"))
    if cache is not None:
        _save_timings(cache, config, lines)
    return bytes(plan)


def _parse(
    toolkit: Toolkit, builder: Any, log: Any, model: ModelProto, settings: Settings, lines: Lines
) -> tuple[Any, Any]:
    names = flag_names(bool(settings.plugins))
    network = builder.create_network(toolkit.network_flags(*names))
    parser = toolkit.trt.OnnxParser(network, log)
    if not parser.parse(model.SerializeToString()):
        said = [str(parser.get_error(i)) for i in range(parser.num_errors)]
        raise EngineError(explain(said or lines.errors, "the graph cannot be parsed"))
    compare(toolkit, network, model)
    return network, parser


def _configure(toolkit: Toolkit, config: Any, settings: Settings, lines: Lines) -> Path | None:
    """Set everything but sizes and the monitor; return where timings are to be kept."""
    trt = toolkit.trt
    config.builder_optimization_level = settings.opt_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for `engines show --layers`
    if settings.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
    if toolkit.is_portable:
        kinds = [toolkit.capability(c) for c in settings.capabilities]
        if kinds:
            config.num_compute_capabilities = len(kinds)
        for i, kind in enumerate(kinds):
            config.set_compute_capability(kind, i)
        if settings.windows:
            config.runtime_platform = trt.RuntimePlatform.WINDOWS_AMD64
        if lines.errors:  # what it refuses it ignores, and would build for this system
            raise EngineError(explain(lines.errors, "a setting is refused"))
        return None  # timings have no effect there, and asking for them asks for a GPU
    if settings.timing_cache is not None:
        kept = read_timings(settings.timing_cache)
        lines.warnings += [kept.note] if kept.note else []
        cache = config.create_timing_cache(kept.data)
        if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
            lines.warnings.append("timing cache: of another device or version, begun anew")
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    return settings.timing_cache


def _size(builder: Any, network: Any, config: Any, profile: Profile, lines: Lines) -> None:
    shapes = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        name = network.get_input(i).name
        if name not in profile:
            raise EngineError(f"input {name}: has no size; export the model anew")
        # set_shape returns nothing and raises ValueError for what it cannot take
        shapes.set_shape(name, *profile[name])
    if config.add_optimization_profile(shapes) < 0:
        raise EngineError(explain(lines.errors, "the sizes are not accepted"))


def _refuse_warnings(lines: Lines) -> None:
    """Refuse an engine that is only warned of: at some size its tensors do not fit together."""
    bad = [w for w in lines.warnings if "not self-consistent" in w]
    if bad:
        raise EngineError(explain(bad, "a size does not fit the graph"))


def _save_timings(path: Path, config: Any, lines: Lines) -> None:
    """Keep the timings; an engine is not lost for want of them."""
    cache = config.get_timing_cache()
    if cache is None:
        return
    try:
        write_timings(path, bytes(cache.serialize()))
    except (EngineError, OutputError) as e:
        lines.warnings.append(f"timing cache not kept: {e}")


def compare(toolkit: Toolkit, network: Any, model: ModelProto) -> None:
    """Make sure that a parsed network has exactly the graph's convolutions, transposed ones too.

    Raises:
        EngineError: It has not; the line names the first ones that differ.
    """
    trt = toolkit.trt
    kinds = {"CONVOLUTION": "IConvolutionLayer", "DECONVOLUTION": "IDeconvolutionLayer"}
    found: dict[str, list[Convolution]] = {name: [] for name in kinds}
    types = {getattr(trt.LayerType, name): name for name in kinds}
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        name = types.get(layer.type)
        if name is not None:
            layer.__class__ = getattr(trt, kinds[name])  # the typed view
            found[name].append(_convolution(layer))
    _refuse_other("convolution", convolutions(model), found["CONVOLUTION"])
    others = convolutions(model, "ConvTranspose")
    _refuse_other("transposed convolution", others, found["DECONVOLUTION"])


def _convolution(layer: Any) -> Convolution:
    sizes = (layer.kernel_size_nd, layer.stride_nd, layer.dilation_nd)
    kernel, strides, dilations = (tuple(map(int, s)) for s in sizes)
    pads = (*map(int, layer.pre_padding), *map(int, layer.post_padding))
    return Convolution(kernel, strides, dilations, pads)


def _refuse_other(what: str, wanted: Iterable[Convolution], parsed: Iterable[Convolution]) -> None:
    ours, theirs = sorted(wanted), sorted(parsed)
    if ours == theirs:
        return
    lost, strange = list(ours), list(theirs)
    for c in ours:
        if c in strange:
            strange.remove(c)
            lost.remove(c)
    raise EngineError(
        f"the parser changed the graph: {len(ours)} {what}s became {len(theirs)}, lost "
        f"{_told(lost)}, found {_told(strange)}; export the model anew, or use ONNX Runtime"
    )


def _told(found: list[Convolution]) -> str:
    words = [
        f"{'x'.join(map(str, c.kernel))} stride {c.strides} dilation {c.dilations} pads {c.pads}"
        for c in found[:_SHOWN]
    ]
    return ", ".join(words) or "none"
