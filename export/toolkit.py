"""TensorRT or TensorRT-RTX behind one object: what differs between them is decided here.

Flags are set by name, never by bit: STRONGLY_TYPED is bit 1 in TensorRT 10 and bit 0 in 11. What a
version may lack is asked for with `hasattr`. Neither library raises when it fails: it returns
nothing and logs, so the log is kept and its texts are put into words.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from fastrestore.backends.engine_load import log_of
from fastrestore.engine_record import TITLES, Product
from fastrestore.errors import EngineError, MissingExtraError

PRODUCTS: tuple[Product, ...] = ("tensorrt", "tensorrt_rtx")  # in the order they are looked for
INSTALL: dict[Product, str] = {
    "tensorrt": "pip install 'fastrestore[tensorrt]'; on a Jetson `apt install python3-libnvinfer` "
    "and a venv with --system-site-packages",
    "tensorrt_rtx": "pip install 'fastrestore[rtx]'",
}
PORTABLE = ("8.0+",)  # what TensorRT-RTX builds for when it is told nothing: Ampere and newer
KEPT_LINES = 50
SHOWN_ERRORS = 3
# Harmless, and many of them: counted, not shown.
NOISE = {
    "already exists": "repeated node names",
    "scales to fp32": "INT8 scales converted to FP32",
    "kipping tactic": "tactics skipped, most for want of memory",
}


class Cause(NamedTuple):
    """What a text of the library means: a part of the text, our words, what mends it."""

    text: str
    words: str
    mend: str


# The first that is found in any error line wins: the special before the general. That there is no
# driver is said last, for TensorRT-RTX mentions it beside other failures where it needs none.
CAUSES = (
    Cause("BuildCanceled", "the build was cancelled", "start it again"),
    Cause(
        "no optimization profile has been defined",
        "the graph takes any size and none was given",
        "add --for 720p",
    ),
    Cause(
        "missing dimensions in profile",
        "an input has no size",
        "export the model anew with `fastrestore export`",
    ),
    Cause(
        "MIN<=OPT<=MAX",
        "smallest, best and largest size are not in this order",
        "give --dynamic MIN OPT MAX from small to large",
    ),
    Cause(
        "values are not self-consistent",
        "a size is no multiple of what the model needs",
        "give sizes that are multiples of its spec's `multiple`",
    ),
    Cause(
        "kEXPECTED_MAGIC_TAG",
        "is an engine of the other product, or no engine",
        "build it with --target of what runs here",
    ),
    Cause("plan.header.size == blobSize", "the engine was cut short", "build it with --rebuild"),
    Cause(
        "ersion tag does not match",
        "the engine is of another version",
        "build it with --rebuild",
    ),
    Cause(
        "SERIALIZATION_VERSION",
        "the engine is of another version",
        "build it with --rebuild",
    ),
    Cause(
        "incompatible device",
        "the engine was built for another GPU",
        "build it here with --rebuild",
    ),
    Cause(
        "setRuntimePlatform",
        "this version does not build for Windows here",
        "build it on the Windows machine",
    ),
    Cause(
        "HW-specific datatypes",
        "one of the compute capabilities lacks a type of the graph",
        "use fp16, or 8.0 and newer",
    ),
    Cause(
        "legalUINT8",
        "the graph casts to bytes elsewhere than at its end",
        "export the model anew with `fastrestore export`",
    ),
    Cause(
        "UINT8 zero_point",
        "the INT8 file is the CPU's form",
        "use the file that ships beside the model, or --calibration DIR",
    ),
    Cause(
        "Non-zero zero point",
        "the INT8 file is not symmetric",
        "use the file that ships beside the model, or --calibration DIR",
    ),
    Cause(
        "has type Int32 but must have type FP8",
        "the INT8 file has quantised biases",
        "use the file that ships beside the model, or --calibration DIR",
    ),
    Cause(
        "must have same input types",
        "the graph mixes precisions",
        "use another --precision, or export the model anew",
    ),
    Cause(
        "must be of same type",
        "the graph mixes precisions",
        "use another --precision, or export the model anew",
    ),
    Cause(
        "Plugin not found",
        "the graph has a node that nothing here knows",
        "use --plugins off, or export the model anew",
    ),
    Cause(
        "Could not find any implementation",
        "a layer found no kernel within its memory",
        "give more --workspace or another --precision; ONNX Runtime runs the model meanwhile",
    ),
    Cause(
        "within workspace limit",
        "a layer needs more scratch memory than --workspace gives",
        "give more --workspace, or leave it out",
    ),
    Cause(
        "out of memory",
        "the device's memory was used up",
        "close other programs, or use a smaller --for or --batch; swap does not help",
    ),
    Cause(
        "OutOfMemory",
        "the device's memory was used up",
        "close other programs, or use a smaller --for or --batch; swap does not help",
    ),
    Cause(
        "driver version is insufficient",
        "there is no NVIDIA driver, or one that is too old",
        "install the driver that `fastrestore doctor` names",
    ),
    Cause(
        "no CUDA-capable device",
        "there is no CUDA device",
        "run it where one is, or use --target rtx",
    ),
)


def explain(lines: Iterable[str], unknown: str) -> str:
    """Turn lines of the library's log into `cause; mend (its last error lines)`.

    Args:
        lines: Error lines and suspicious warnings.
        unknown: What to say of the cause where no line is known.
    """
    said = [" ".join(line.split()) for line in lines]
    found = next((c for c in CAUSES if any(c.text in line for line in said)), None)
    words = f"{found.words}; {found.mend}" if found else f"{unknown}; see `fastrestore doctor`"
    told = " | ".join(line[:200] for line in said[-SHOWN_ERRORS:])
    return f"{words} ({told})" if told else words


def is_known(lines: Iterable[str], text: str) -> bool:
    """Tell whether any line holds a text."""
    return any(text in line for line in lines)


class Lines:
    """What the library said, without its chatter. Called from C++: never raises."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.counted: Counter[str] = Counter()

    def add(self, is_error: bool, text: str) -> None:
        """Keep a line, or count it if it is known to be harmless."""
        known = next((words for part, words in NOISE.items() if part in text), None)
        if known is not None:
            self.counted[known] += 1
            return
        kept = self.errors if is_error else self.warnings
        if len(kept) < KEPT_LINES:
            kept.append(text)
        else:  # the last ones tell why it failed
            kept[-1] = text

    def summary(self) -> list[str]:
        """Return what a user should hear: warnings once each, and what was counted."""
        heard = list(dict.fromkeys(" ".join(w.split())[:200] for w in self.warnings))
        return heard + [f"{n} {words}" for words, n in self.counted.items()]


@dataclass(frozen=True, slots=True)
class Toolkit:
    """One of the two libraries.

    Attributes:
        product: Which.
        trt: Its module, or a stand-in.
        version: All four parts.
    """

    product: Product
    trt: Any
    version: str

    @property
    def title(self) -> str:
        """What it is called."""
        return TITLES[self.product]

    @property
    def is_portable(self) -> bool:
        """Whether it builds without a device, for several kinds of GPU."""
        return self.product == "tensorrt_rtx"

    def logger(self, lines: Lines) -> Any:
        """Return the logger of this process, which writes into `lines` from now on."""
        log = log_of(self.trt)
        log.hear = lines.add
        return log.sink

    def monitor(self, progress: Any) -> Any:
        """Return a progress monitor that asks `progress` (see `fastrestore.export.progress`)."""
        return _make_monitor(self.trt, progress)

    def network_flags(self, *names: str) -> int:
        """Return creation flags of a network by their names; strongly typed in any case.

        Raises:
            EngineError: This version lacks one.
        """
        kinds, bits = self.trt.NetworkDefinitionCreationFlag, 0
        for name in ("STRONGLY_TYPED", *names):
            if not hasattr(kinds, name):
                raise EngineError(
                    f"{self.title} {self.version}: has no {name}; TensorRT 10.3 or newer is "
                    "needed, for plugins 10.9"
                )
            bits |= 1 << int(getattr(kinds, name))
        return bits

    def capability(self, text: str) -> Any:
        """Return the library's name of a compute capability such as `8.9`.

        Raises:
            EngineError: It cannot build for that one.
        """
        kinds = self.trt.ComputeCapability
        name = "CURRENT" if text == "current" else "SM" + text.replace(".", "")
        if name in ("SM", "SMNONE") or not hasattr(kinds, name):
            numbers = [n[2:] for n in dir(kinds) if re.fullmatch(r"SM\d+", n)]
            known = sorted((f"{n[:-1]}.{n[-1]}" for n in numbers), key=float)
            raise EngineError(
                f"compute capability {text}: {self.title} {self.version} cannot build for it; "
                f"choose from {', '.join(known)}"
            )
        return getattr(kinds, name)


def _make_monitor(trt: Any, progress: Any) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # no types
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            progress.phase_start(name, parent, steps)

        def step_complete(self, name: str, step: int) -> bool:
            return bool(progress.step_complete(name, step))

        def phase_finish(self, name: str) -> None:
            progress.phase_finish(name)

    return Monitor()


def installed() -> list[Product]:
    """Return which of the two can be found, without loading them."""
    return [p for p in PRODUCTS if importlib.util.find_spec(p) is not None]


def open_toolkit(product: Product | None = None) -> Toolkit:
    """Load a library.

    Args:
        product: Which; None = the one that is installed, TensorRT if both are.

    Raises:
        MissingExtraError: It is not installed.
        EngineError: It is installed but cannot be loaded, or is too old.
    """
    found = installed()
    if product is None and not found:
        ways = f"{INSTALL['tensorrt_rtx']} (RTX cards; needs no GPU to build), or "
        raise MissingExtraError(
            f"neither TensorRT nor TensorRT-RTX is installed: {ways}{INSTALL['tensorrt']}"
        )
    wanted = product or found[0]
    if wanted not in found:
        raise MissingExtraError(f"{TITLES[wanted]} is not installed: {INSTALL[wanted]}")
    try:
        trt = importlib.import_module(wanted)
    except ImportError as e:
        raise EngineError(_why_not_loaded(wanted, str(e))) from e
    toolkit = Toolkit(wanted, trt, str(getattr(trt, "__version__", "")))
    if not hasattr(trt, "IProgressMonitor") or not hasattr(trt, "Builder"):
        raise EngineError(
            f"{toolkit.title} {toolkit.version or 'of unknown version'}: is too old or not whole; "
            "TensorRT 10.3 or newer is needed"
        )
    return toolkit


def _why_not_loaded(product: Product, text: str) -> str:
    title = TITLES[product]
    if "libnvdla_compiler" in text:
        return (
            f"{title}: libnvdla_compiler.so is missing, which the Jetson's host has and this "
            "container lacks; `apt install nvidia-l4t-dla-compiler`, or mount it"
        )
    if "lib" in text and ".so" in text:
        missing = next((w.strip(":,'\"") for w in text.split() if ".so" in w), "a library")
        return f"{title}: {missing} is missing, only its Python part is here; {INSTALL[product]}"
    return f"{title}: cannot be loaded ({text.splitlines()[0][:200]}); {INSTALL[product]}"
