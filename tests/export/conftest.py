"""A stand-in for the `tensorrt` module: what we call of it, in TensorRT 10's words."""

from __future__ import annotations

import enum
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from fastrestore.export.precision import convolutions


class Severity(enum.IntEnum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ILogger:
    Severity = Severity

    def __init__(self) -> None:
        self.is_made = True


class IProgressMonitor:
    def __init__(self) -> None:
        self.is_made = True


class Layer:
    """As the binding gives it out: without its kind's own members until the class is changed."""

    def __init__(self, kind: str, convolution: Any) -> None:
        self.type, self.found = kind, convolution


class Typed(Layer):
    @property
    def kernel_size_nd(self) -> Any:
        return self.found.kernel

    @property
    def stride_nd(self) -> Any:
        return self.found.strides

    @property
    def dilation_nd(self) -> Any:
        return self.found.dilations

    @property
    def pre_padding(self) -> Any:
        return self.found.pads[:2]

    @property
    def post_padding(self) -> Any:
        return self.found.pads[2:]


class Network:
    def __init__(self, flags: int) -> None:
        self.flags, self.layers, self.inputs = flags, list[Layer](), list[Any]()

    num_layers = property(lambda self: len(self.layers))
    num_inputs = property(lambda self: len(self.inputs))

    def get_layer(self, i: int) -> Layer:
        return self.layers[i]

    def get_input(self, i: int) -> Any:
        return self.inputs[i]


class Config:
    """Keeps what it is told; a timing cache of other bytes than `device` is refused."""

    def __init__(self) -> None:
        self.profiles: list[dict[str, Any]] = []
        self.pools: dict[str, int] = {}
        self.cache: Any = None
        self.refused: list[bytes] = []

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        self.pools[pool] = size

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1

    def create_timing_cache(self, blob: bytes) -> Any:
        return SimpleNamespace(blob=blob, serialize=lambda: b"device+new")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        if cache.blob and not cache.blob.startswith(b"device"):
            self.refused.append(cache.blob)
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self.cache


class FakeTrt:
    """The module.

    Attributes:
        plans: What builds give, one after the other; None = it fails.
        errors: Lines that a failing build logs.
        warnings: Lines that every build logs.
        spoil: Changes the parsed layers.
        on_build: Called with the monitor; False = the build is cancelled.
    """

    __version__ = "10.3.0"
    ILogger, IProgressMonitor = ILogger, IProgressMonitor
    IConvolutionLayer = IDeconvolutionLayer = Typed
    LayerType = SimpleNamespace(CONVOLUTION="conv", DECONVOLUTION="deconv")
    MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")

    class NetworkDefinitionCreationFlag(enum.IntEnum):
        EXPLICIT_BATCH, STRONGLY_TYPED, PREFER_AOT_PYTHON_PLUGINS = 0, 1, 3

    def __init__(self) -> None:
        self.plans: list[bytes | None] = []
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.parse_errors: list[str] = []
        self.spoil: Callable[[list[Layer]], None] = lambda layers: None
        self.on_build: Callable[[Any], bool] = lambda monitor: True
        self.configs: list[Config] = []
        self.networks: list[Network] = []
        self.n_built = 0

    def Builder(self, log: Any) -> Any:
        def create_network(flags: int) -> Network:
            self.networks.append(Network(flags))
            return self.networks[-1]

        def create_builder_config() -> Config:
            self.configs.append(Config())
            return self.configs[-1]

        def create_optimization_profile() -> Any:
            shapes: dict[str, Any] = {}
            keep = lambda name, *dims: shapes.update({name: dims})  # noqa: E731
            return SimpleNamespace(shapes=shapes, set_shape=keep)

        def build_serialized_network(network: Network, config: Any) -> bytes | None:
            for line in self.warnings:
                log.log(Severity.WARNING, line)
            if not self.on_build(config.progress_monitor):
                log.log(Severity.ERROR, "Error Code 7: BuildCanceled (Build canceled by user)")
                return None
            plan = self.plans[self.n_built] if self.n_built < len(self.plans) else b"ftrt" * 16
            self.n_built += 1
            for line in self.errors if plan is None else []:
                log.log(Severity.ERROR, line)
            return plan

        return SimpleNamespace(
            **{k: v for k, v in locals().items() if k.startswith(("create", "build"))}
        )

    def OnnxParser(self, network: Network, log: Any) -> Any:
        def parse(data: bytes) -> bool:
            model = onnx.load_model_from_string(data)
            for value in model.graph.input:
                network.inputs.append(SimpleNamespace(name=value.name))
            network.layers += [Layer("conv", c) for c in convolutions(model)]
            network.layers += [Layer("deconv", c) for c in convolutions(model, "ConvTranspose")]
            network.layers.append(Layer("other", None))
            self.spoil(network.layers)
            return not self.parse_errors

        return SimpleNamespace(
            parse=parse, num_errors=len(self.parse_errors), get_error=self.parse_errors.__getitem__
        )


@pytest.fixture
def fake_trt() -> FakeTrt:
    return FakeTrt()
