"""An engine in its runtime: TensorRT or TensorRT-RTX, whichever built it.

The runtimes report by None or False and a line in a log, which is kept to be quoted.
"""

from __future__ import annotations

import json
import logging
import re
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from fastrestore.atomic import label
from fastrestore.backend import Frames, has_state
from fastrestore.backends.rtx_cache import RtxCache
from fastrestore.cuda_driver import ELSE, first_line
from fastrestore.engine_file import Engine
from fastrestore.engine_fit import ANEW, Expected, rebuild, refuse_other
from fastrestore.engine_record import TITLES, Product
from fastrestore.errors import EngineError, MissingExtraError, need

logger = logging.getLogger(__name__)

EXTRAS: dict[Product, str] = {"tensorrt": "tensorrt", "tensorrt_rtx": "rtx"}
CHANNELS = {"frame": 3, "mask": 1, "state": 4, "restored": 3, "state_out": 4}  # bytes a pixel
KEPT_LINES = 20
_DRIVER = "install a newer driver, or use --backend ort"
_MEMORY = "close other programs that use the GPU, or use --backend ort"
# what the runtimes say -> what it means, and the mend if it is always the same
_MEANINGS = (
    ("insufficient for CUDA runtime", "NVIDIA's driver is absent or older than it needs", _DRIVER),
    ("no CUDA-capable device", "there is no CUDA device", _DRIVER),
    ("incompatible device", "the engine was built for another GPU", ""),
    ("VersionRead ==", "the engine was built by another version", ""),
    ("kEXPECTED_MAGIC_TAG", "the engine is of the other product, or none at all", ""),
    ("header.size == blobSize", "the engine was cut short", ""),
    ("out of memory", "out of GPU memory", _MEMORY),
    ("OutOfMemory", "out of GPU memory", _MEMORY),
)
_CUDA = re.compile(r"cudaError (\d+: [^()]*)")
_LOGS: dict[type, Log] = {}


def import_product(product: Product) -> Any:
    """Import a runtime.

    Raises:
        MissingExtraError: It is not installed.
        EngineError: It is, but a library that it needs is not.
    """
    try:
        return need(product, EXTRAS[product])
    except MissingExtraError as e:
        cause = e.__cause__
        if cause is None or isinstance(cause, ModuleNotFoundError):
            raise
        raise EngineError(
            f"{TITLES[product]}: is installed but cannot be loaded ({first_line(cause)}); "
            f"`fastrestore doctor` looks for its libraries, {ELSE}"
        ) from e


class Log:
    """What a library says: its errors are kept, the rest goes to our debug log.

    A library may go on with the first logger of a process: see `log_of`.

    Attributes:
        sink: The object that runtimes and builders take.
        hear: Is told of every error (True) and warning (False) as well; None = nobody.
    """

    def __init__(self, trt: Any) -> None:
        self.hear: Callable[[bool, str], None] | None = None
        lines: deque[str] = deque(maxlen=KEPT_LINES)
        log = self
        severity = trt.ILogger.Severity
        grave = (severity.INTERNAL_ERROR, severity.ERROR)

        class Sink(trt.ILogger):  # type: ignore[misc]  # untyped
            def __init__(self) -> None:
                trt.ILogger.__init__(self)  # the binding insists on its own name

            def log(self, level: Any, text: str) -> None:
                # called from C++: nothing may be raised
                is_error = level in grave
                if is_error:
                    lines.append(" ".join(text.split()))
                if log.hear is not None and (is_error or level == severity.WARNING):
                    log.hear(is_error, text)
                logger.debug("%s", text)

        self.sink = Sink()
        self._lines = lines

    def clear(self) -> None:
        """Forget what was said: it is about another call."""
        self._lines.clear()

    def reason(self) -> tuple[str, str]:
        """Return in words why the last call failed, and the mend if that follows."""
        lines = list(self._lines)
        for line in lines:  # the first is the cause, others may follow from it
            for sign, meaning, mend in _MEANINGS:
                if sign in line:
                    return meaning, mend
            if found := _CUDA.search(line):
                return f"CUDA error {found[1]}", f"`fastrestore doctor` looks at the driver, {ELSE}"
        return lines[0][:200] if lines else "it does not say why", ""


def log_of(trt: Any) -> Log:
    """Return the one log of a library in this process, by its class of loggers."""
    if trt.ILogger not in _LOGS:
        _LOGS[trt.ILogger] = Log(trt)
    return _LOGS[trt.ILogger]


class LoadedEngine:
    """A deserialised engine and what it takes. Made, used and closed inside an active context.

    Attributes:
        frames: Smallest and largest `(N, H, W)` of each profile.
        dtypes: Of every input and output, by name.
        inputs: Names of the inputs.
        outputs: Names of the outputs.
        has_state: Whether it keeps a state.
        captures: Whether its work is to be captured as a CUDA graph; RTX captures by itself.
    """

    def __init__(self, product: Product, engine: Engine, place: str) -> None:
        """Deserialise an engine that was checked.

        Args:
            product: What built it.
            engine: From `check_engine`.
            place: The GPU's name and capability; what RTX compiles is kept under that.

        Raises:
            MissingExtraError: The runtime is not installed.
            EngineError: It cannot be loaded, is of another version, refuses the engine, or that is
                no restorer.
        """
        self._trt = trt = import_product(product)
        self.name = label(engine.path)
        self._title = f"{TITLES[product]} {trt.__version__}"
        self._mend = ANEW if engine.record is None else rebuild(engine.record, path=engine.path)
        if engine.record is not None:  # what is imported need not be what pip knows of
            here = Expected(product, trt.__version__)
            refuse_other(engine.path, engine.record, here)
        self._log = log_of(trt)
        self._log.clear()
        self._runtime: Any = trt.Runtime(self._log.sink)
        self._engine: Any = self._runtime.deserialize_cuda_engine(engine.data)
        if self._engine is None:
            raise self.failure("cannot be loaded by", self._mend)
        self._read_types()
        self.frames = tuple(self._profiles())
        self.captures = product == "tensorrt"
        self._cache = None if self.captures else RtxCache(trt, self._engine, engine.data, place)

    def failure(self, what: str, mend: str = "use --backend ort") -> EngineError:
        """Return what to say of a call that failed, with the runtime's own reason."""
        reason, known = self._log.reason()
        return EngineError(f"{self.name}: {what} {self._title} ({reason}); {known or mend}")

    def new_context(self) -> Any:
        """Make what runs it, for one stream.

        Raises:
            EngineError: Memory is short.
        """
        self._log.clear()
        if self._cache is None:
            context = self._engine.create_execution_context()
        else:
            context = self._engine.create_execution_context(self._cache.config)
        if context is None:
            raise self.failure("gets no execution context from", _MEMORY)
        return context

    def profile_of(self, shape: tuple[int, ...]) -> int:
        """Return the number of a profile that takes `(N, H, W)`, -1 if none does."""
        for i, (low, high) in enumerate(self.frames):
            if all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True)):
                return i
        return -1

    def keep_compiled(self) -> None:
        """Write down what RTX compiled, so that the next process need not."""
        if self._cache is not None:
            self._cache.save()

    def layers(self) -> list[Any]:
        """Return what the runtime tells of each layer: text, or a record in detailed engines.

        Raises:
            EngineError: It tells nothing.
        """
        inspector = self._engine.create_engine_inspector()
        text = inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)
        try:
            return list(json.loads(text)["Layers"])
        except (ValueError, TypeError, KeyError) as e:
            raise self.failure("no layers are told by", "look at the sidecar instead") from e

    def close(self) -> None:
        """Free it; contexts must be gone before."""
        self.keep_compiled()
        self._cache = None
        self._engine = None
        self._runtime = None

    def _read_types(self) -> None:
        """Read names and types; refuse what is not a restorer's."""
        trt, engine = self._trt, self._engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        is_input = {n: engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT for n in names}
        self.inputs = tuple(n for n in names if is_input[n])
        self.outputs = tuple(n for n in names if not is_input[n])
        self.has_state = has_state(self.name, self.inputs, self.outputs)
        kinds = {
            trt.DataType.UINT8: np.uint8,
            trt.DataType.FLOAT: np.float32,
            trt.DataType.HALF: np.float16,
        }
        self.dtypes: dict[str, npt.DTypeLike] = {}
        for name in names:
            dtype = kinds.get(engine.get_tensor_dtype(name))
            if dtype is None or (dtype is np.uint8) != (name in CHANNELS):
                kind = engine.get_tensor_dtype(name)
                raise EngineError(f"{self.name}: {name} is {kind}, no restorer's; {self._mend}")
            self.dtypes[name] = dtype

    def _profiles(self) -> Iterator[Frames]:
        fixed = tuple(self._engine.get_tensor_shape("frame"))
        if min(fixed) > 0:  # without a profile that could be asked
            yield _frame(fixed), _frame(fixed)
            return
        for i in range(self._engine.num_optimization_profiles):
            low, _, high = self._engine.get_tensor_profile_shape("frame", i)
            yield _frame(tuple(low)), _frame(tuple(high))


def _frame(dims: tuple[int, ...]) -> tuple[int, int, int]:
    n, h, w, _ = dims
    return n, h, w
