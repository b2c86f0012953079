"""Engines of TensorRT and TensorRT-RTX as a backend. No torch. Never run on a GPU yet.

What is verified runs on a stand-in for the driver and the runtime; RTX's own refusals are real.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fastrestore.arrays import F32, U8
from fastrestore.atomic import label
from fastrestore.backend import Frames, Shape, blank_batch, check_batch, shipped_models
from fastrestore.backends.engine_lane import Lane
from fastrestore.backends.engine_load import LoadedEngine
from fastrestore.cuda import Cuda, Driver
from fastrestore.engine_file import MAGIC, DeviceRecord, Engine, Expected, check_engine
from fastrestore.engine_fit import ANEW, TARGETS, build_command, refuse_other, shape_text
from fastrestore.engine_here import product_version
from fastrestore.engine_record import EngineRecord, Product
from fastrestore.errors import EngineError, MissingExtraError, ModelError, need
from fastrestore.spec import ModelSpec, read_spec

if TYPE_CHECKING:
    from fastrestore.bench.device_time import Marks

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")


class Pool:
    """The lanes of one engine: so many callers run at once, others wait."""

    def __init__(
        self, cuda: Cuda, product: Product, engine: Engine, streams: int, mapped: bool
    ) -> None:
        """Load an engine and allocate everything.

        Raises:
            MissingExtraError, EngineError: See `LoadedEngine` and `Lane`; nothing stays allocated.
        """
        self._cuda, self._mapped = cuda, mapped
        self._idle: queue.LifoQueue[Lane | None] = queue.LifoQueue()
        self._n_lanes, self._is_closed = 0, False
        self.record = engine.record
        with cuda.active():
            place = f"{cuda.device.name} {cuda.device.sm}"
            self._engine = LoadedEngine(product, engine, place)
        with ExitStack() as undo:
            undo.callback(self.close)
            with cuda.active():
                for _ in range(streams):
                    self._idle.put(Lane(cuda, self._engine, mapped))
                    self._n_lanes += 1
            undo.pop_all()
        self.frames = self._engine.frames

    def takes(self, shape: Shape) -> bool:
        """Return whether a batch of `(N, H, W)` can be run."""
        return self._engine.profile_of(shape) >= 0

    def run(self, frame: U8, mask: U8, state: U8, sigma: F32) -> tuple[U8, U8]:
        """Run on the next free lane. One that fails is closed, and made anew for the next call.

        Raises:
            EngineError: It is closed, or the device or the runtime failed.
        """
        return self._on_a_lane(lambda lane: lane.run(frame, mask, state, sigma))

    def timed(self, marks: Marks) -> None:
        """Run once more what ran last; see `Lane.timed`.

        Raises:
            EngineError: As `run` does.
        """
        self._on_a_lane(lambda lane: lane.timed(marks))

    def _on_a_lane(self, work: Callable[[Lane], _Result]) -> _Result:
        lane = self._idle.get()
        try:
            if self._is_closed:
                raise EngineError(f"{self._engine.name}: the backend is closed; open it again")
            with self._cuda.active():
                if lane is None:
                    lane = Lane(self._cuda, self._engine, self._mapped)
                try:
                    return work(lane)
                except BaseException:  # half-written buffers, a graph half captured
                    broken, lane = lane, None
                    with suppress(EngineError):  # the first failure says more
                        broken.close()
                    raise
        finally:
            self._idle.put(lane)

    def close(self) -> None:
        """Wait for all callers and free everything.

        Raises:
            EngineError: The device failed; all was tried.
        """
        self._is_closed = True
        with ExitStack() as held:
            with suppress(EngineError):  # a device that is gone: its memory went with it
                held.enter_context(self._cuda.active())
            held.callback(self._engine.close)
            for _ in range(self._n_lanes):
                lane = self._idle.get()
                if lane is not None:
                    held.callback(lane.close)
        for _ in range(self._n_lanes):  # for callers that still wait
            self._idle.put(None)


class TensorRtBackend:
    """One model as one or several engines, each for its sizes of frames.

    Calls from several threads are allowed; `streams` of them run at once, the others wait. A single
    caller gains nothing from a second stream: see `engine_lane`.

    Attributes:
        frames: Smallest and largest `(N, H, W)` of each engine: nothing else can be run.
        precision: Of the first engine; empty if it has no sidecar.
    """

    def __init__(
        self,
        engines: str | Path | Sequence[str | Path],
        spec: ModelSpec | None = None,
        model_sha256: str | None = None,
        *,
        model: str | Path | None = None,
        product: Product | None = None,
        device: int = 0,
        trust: bool = False,
        streams: int = 1,
        mapped: bool | None = None,
        verify: bool = False,
        driver: Driver | None = None,
    ) -> None:
        """Check engines and load them, in this order.

        Args:
            engines: One path or several.
            spec: Of the model that they were built from; None = found among those that ship.
            model_sha256: Of its file; None = not compared.
            model: Its name or file, to compare the engine with; None = among those that ship.
            product: What built them; None = as the sidecar says.
            device: Among those that CUDA_VISIBLE_DEVICES leaves.
            trust: Accept engines from elsewhere; see `check_engine`.
            streams: How many callers may run at once; each costs the engine's working memory.
            mapped: Let the device use the host's memory in place; None = where it shares it.
            verify: Compare engines that never were with ONNX Runtime first, as `open_backend`
                does; the gate itself does not.
            driver: Stands in for CUDA's in tests.

        Raises:
            EngineError: An engine does not belong here, or CUDA or the runtime refuses.
            ModelError: The engine's model is not among those that ship.
            MissingExtraError: A CUDA binding, the runtime, or what verifies is not installed.
        """
        paths = [Path(p) for p in ([engines] if isinstance(engines, (str, Path)) else engines)]
        self._trust, self._closing = trust, threading.Lock()
        self._pools: list[Pool] = []
        self._wanted = Expected(product, None if product is None else product_version(product))
        # What is wrong with the files is said before anything native is loaded.
        checked = [check_engine(path, self._wanted, trust) for path in paths]
        self._product = product or _product_of(checked[0])
        self.name = TARGETS[self._product]
        self.spec = spec or shipped_spec(checked[0])
        version = product_version(self._product)
        name = self.spec.name if model is None else str(model)
        self._wanted = Expected(self._product, version, None, model_sha256, name, index=device)
        for engine in checked:
            self._refuse_other(engine)
        self._cuda = cuda = Cuda(device, driver)
        with ExitStack() as held:
            held.callback(self.close)
            here = DeviceRecord(cuda.device.name, cuda.device.sm)
            self._wanted = replace(self._wanted, device=here)
            in_place = cuda.device.is_integrated if mapped is None else mapped
            for engine in checked:
                self._refuse_other(engine)
                sound = self._verified(engine, model, device) if verify else engine
                self._pools.append(Pool(cuda, self._product, sound, streams, in_place))
            held.pop_all()
        self.frames: tuple[Frames, ...] = tuple(f for p in self._pools for f in p.frames)
        record = self._pools[0].record
        self.precision = "" if record is None else record.precision

    def run(self, frame: U8, mask: U8, state: U8, sigma: F32) -> tuple[U8, U8]:
        """See `Backend.run`. The results are new arrays; all else is allocated when it is loaded.

        Raises:
            InputError: An array of another shape or dtype than the protocol says.
            EngineError: No engine takes this size, it is closed, or the device failed.
        """
        check_batch(self.spec, frame, mask, state, sigma)
        n, h, w, _ = frame.shape
        return self._pool((n, h, w)).run(frame, mask, state, sigma)

    def timed(self, shape: Shape, marks: Marks) -> None:
        """Run once more what `run` ran last, with marks; `run` must have run this shape before.

        Raises:
            EngineError: No engine takes this size, it is closed, or the device failed.
        """
        self._pool(shape).timed(marks)

    @property
    def records(self) -> tuple[EngineRecord | None, ...]:
        """What the sidecars say of the engines, None of one without."""
        return tuple(p.record for p in self._pools)

    def _pool(self, shape: Shape) -> Pool:
        pool = next((p for p in self._pools if p.takes(shape)), None)
        if pool is None:
            raise EngineError(self._no_engine(shape))
        return pool

    def warm_up(self, shape: Shape) -> None:
        """See `Backend.warm_up`; the first run compiles, the second captures."""
        for _ in range(2):
            self.run(*blank_batch(shape))

    def close(self) -> None:
        """See `Backend.close`. Waits for calls in other threads; a failing device is a warning."""
        with self._closing:
            pools, self._pools = self._pools, []
            for close in (*(p.close for p in pools), self._cuda.close):
                try:
                    close()
                except EngineError as e:
                    logger.warning("%s", str(e))

    def _refuse_other(self, engine: Engine) -> None:
        if engine.record is not None:
            refuse_other(engine.path, engine.record, self._wanted)

    def _verified(self, engine: Engine, model: str | Path | None, device: int) -> Engine:
        """Return an engine that was compared with ONNX Runtime, now if not before.

        One without a sidecar is trusted as it is.
        """
        if engine.record is None or engine.record.verification is not None:
            return engine
        _verify(engine.path, model, device, self._trust)
        return check_engine(engine.path, self._wanted, self._trust)

    def _no_engine(self, shape: Shape) -> str:
        if not self._pools:
            return f"{self.spec.name}: the backend is closed; open it again"
        sizes = [shape_text(a) + ("" if a == b else f" to {shape_text(b)}") for a, b in self.frames]
        n, h, w = shape
        words = ["--target", TARGETS[self._product], "--for", f"{w}x{h}"]
        words += ["--batch", str(n)] if n > 1 else []
        words += ["--device", str(self._wanted.index)] if self._wanted.index else []
        record = self._pools[0].record
        sha256 = self._wanted.model_sha256 or (record.model.sha256 if record else None)
        return (
            f"{self.spec.name}: its engines take frames of {', '.join(sizes)}, not "
            f"{shape_text(shape)}; {build_command(sha256, self._wanted.model_name, words)}"
        )


def shipped_spec(engine: Engine) -> ModelSpec:
    """Return the spec of the model that an engine was built from.

    Raises:
        ModelError: It is not among those that ship.
    """
    if engine.record is None:
        raise ModelError(f"{label(engine.path)}: has no sidecar; name its model with --model")
    for path in shipped_models():
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() == engine.record.model.sha256:
            return read_spec(data, path.name)
    raise ModelError(
        f"{label(engine.path)}: its model {engine.record.model.name} does not ship; name it with "
        "--model"
    )


def _product_of(engine: Engine) -> Product:
    """Return what built an engine: by its sidecar, else by its first bytes, which were checked."""
    return MAGIC[engine.data[:4]] if engine.record is None else engine.record.product


def layers(path: str | Path, device: int = 0, driver: Driver | None = None) -> list[Any]:
    """Return what an engine runs, layer by layer: text, or a record in detailed engines.

    Raises:
        EngineError: The engine is damaged or does not belong here, or CUDA refuses.
        MissingExtraError: A CUDA binding or the runtime is not installed.
    """
    engine = check_engine(path)
    if engine.record is None:
        raise EngineError(f"{label(path)}: has no sidecar; {ANEW}")
    product = engine.record.product
    cuda = Cuda(device, driver)
    with ExitStack() as held:
        held.callback(cuda.close)
        here = DeviceRecord(cuda.device.name, cuda.device.sm)
        wanted = Expected(product, product_version(product), here, index=device)
        refuse_other(engine.path, engine.record, wanted)
        held.enter_context(cuda.active())
        loaded = LoadedEngine(product, engine, f"{here.name} {here.sm}")
        held.callback(loaded.close)
        return loaded.layers()


def _verify(path: Path, model: str | Path | None, device: int, trust: bool) -> None:
    """Compare an engine with ONNX Runtime; the result goes into its sidecar.

    Raises:
        EngineError: It is not good enough.
        MissingExtraError: What compares is not installed.
    """
    logger.info("%s: is not verified; it is compared with ONNX Runtime now", label(path))
    try:
        gate = need("fastrestore.export.gate", "tensorrt")
    except MissingExtraError as e:
        raise MissingExtraError(f"{label(path)}: is not verified, and cannot be here: {e}") from e
    gate.verify_engine(path, model, device, trust)
