"""What an engine's sidecar says: one JSON object, read strictly.

Everything that decides whether an engine belongs to a machine is in it, so that the answer needs
neither TensorRT nor a GPU.
"""

from __future__ import annotations

import json
import platform
import re
import sys
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fastrestore.errors import EngineError
from fastrestore.spec import Track

SCHEMA = 1
Product = Literal["tensorrt", "tensorrt_rtx"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]
Dims = tuple[int, ...]
TITLES: dict[Product, str] = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LONGEST = 20_000  # characters of a text: a path, or what a library said
_MOST = 2**31  # TensorRT counts in 32 bits
_CAPABILITY = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}")


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """A GPU.

    Attributes:
        name: As its driver calls it.
        sm: Compute capability, for example `8.7`.
    """

    name: str
    sm: str


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """The ONNX file that an engine was built from.

    Attributes:
        name: Its spec's name.
        version: Its spec's version.
        sha256: Of the whole file.
        track: `free` or `research`.
        licence: Who may use the weights.
    """

    name: str
    version: int
    sha256: str
    track: Track
    licence: str


@dataclass(frozen=True, slots=True)
class PluginRecord:
    """A kernel inside an engine.

    Attributes:
        sha256: Of its PTX.
        triton: The Triton version that compiled it.
    """

    sha256: str
    triton: str


@dataclass(frozen=True, slots=True)
class Verification:
    """How an engine compared with a backend that is trusted, on the fixture pictures.

    Attributes:
        psnr: Of the worst case in dB; None if no sample of any case differed.
        max_error: Largest difference, in levels of 255.
        nan_count: Samples that were no number.
        mean_latency_ms: Of the engine.
        cases: Pictures compared.
        backend: What it was compared with.
    """

    psnr: float | None
    max_error: float
    nan_count: int
    mean_latency_ms: float
    cases: int
    backend: str


@dataclass(frozen=True, slots=True)
class EngineRecord:
    """The sidecar of one engine.

    Attributes:
        product: What built it and can load it.
        product_version: All four parts; an engine loads in the same version only.
        os: System it runs on; see `system`.
        arch: Processor it runs on; see `system`.
        model: The ONNX file.
        precision: Of the convolutions.
        profile: Input to its smallest, best and largest shape, `(N, H, W, C)` or `(N,)`.
        opt_level: Of the builder, 0 to 5.
        build_seconds: Wall time.
        code_version: Version of fastrestore that built it.
        device: The GPU it was tuned for; None for a portable one.
        compute_capabilities: What a portable one runs on; `8.0+` = that and newer.
        cuda_runtime: Version; None if unknown.
        driver: Version; None where none was present.
        plugins: Name to kernel.
        workspace_mb: Scratch memory of a layer that was asked for; None = half of what was free.
        int8_sha256: Of the INT8 form that it was built from; None = another precision, or `model`
            is INT8 itself.
        calibration: Folder of the pictures that gave that form; None = the file beside the model.
        flags: Names of the network flags that were set.
        jetpack: Version; None if not on a Jetson.
        power_mode: Of a Jetson while it was built.
        verification: None = unverified.
        reasons: Why this candidate, a line each.
        engine_sha256: Of the engine file; filled in when it is written.
        engine_bytes: Its size; likewise.
        schema: Version of this record.
    """

    product: Product
    product_version: str
    os: str
    arch: str
    model: ModelRecord
    precision: Precision
    profile: Mapping[str, tuple[Dims, Dims, Dims]]
    opt_level: int
    build_seconds: float
    code_version: str
    device: DeviceRecord | None = None
    compute_capabilities: tuple[str, ...] = ()
    cuda_runtime: str | None = None
    driver: str | None = None
    plugins: Mapping[str, PluginRecord] = field(default_factory=dict)
    workspace_mb: int | None = None
    int8_sha256: str | None = None
    calibration: str | None = None
    flags: tuple[str, ...] = ()
    jetpack: str | None = None
    power_mode: str | None = None
    verification: Verification | None = None
    reasons: tuple[str, ...] = ()
    engine_sha256: str = "0" * 64
    engine_bytes: int = 0
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        """Refuse what no engine can be.

        Raises:
            EngineError: A value is out of range or contradicts another.
        """
        sums = {
            "engine_sha256": self.engine_sha256,
            "model.sha256": self.model.sha256,
            **{f"plugins.{k}.sha256": v.sha256 for k, v in self.plugins.items()},
        }
        if self.int8_sha256 is not None:
            sums["int8_sha256"] = self.int8_sha256
        for name, value in sums.items():
            if not _SHA256.fullmatch(value):
                raise EngineError(f"{name} is no SHA-256")
        if self.device is None and self.product == "tensorrt":
            raise EngineError("device is missing: TensorRT builds for one GPU")
        if (self.device is None) != bool(self.compute_capabilities):
            raise EngineError("exactly one of device and compute_capabilities must be given")
        sms = [c.removesuffix("+") for c in self.compute_capabilities]
        if not all(
            _CAPABILITY.fullmatch(c) for c in (*sms, *([self.device.sm] if self.device else ()))
        ):
            raise EngineError("a compute capability is written as 8.7")
        if not self.profile:
            raise EngineError("profile is empty")
        if "frame" not in self.profile:
            raise EngineError("profile.frame is missing")
        for name, (low, best, high) in self.profile.items():
            sizes = (*zip(low, best, high, strict=False),)
            ranks = {len(low), len(best), len(high)}
            is_known = ranks == {4} or (ranks == {1} and name != "frame")
            if not is_known or not all(0 < a <= b <= c < _MOST for a, b, c in sizes):
                raise EngineError(f"profile.{name} is not a smallest, best and largest shape")

    @property
    def is_static(self) -> bool:
        """Whether it runs at one shape alone."""
        return all(low == high for low, _, high in self.profile.values())

    def to_json(self) -> str:
        """Return the sidecar's text."""
        return json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> EngineRecord:
        """Parse a sidecar's text.

        Raises:
            EngineError: Not JSON, another schema, or a field is missing, unknown or of another
                type. The file is not named.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as e:
            raise EngineError("is not JSON") from e
        if not isinstance(data, dict):
            raise EngineError("is not a JSON object")
        if type(data.get("schema")) is not int:
            raise EngineError("schema is missing or not a whole number")
        if data["schema"] != SCHEMA:
            raise EngineError(f"schema {data['schema']} is not known, this version reads {SCHEMA}")
        record: EngineRecord = _parse(cls, data, "")
        return record


def system() -> tuple[str, str]:
    """Return this system, as `linux`, and its processor, as `x86_64` or `aarch64`.

    One name a thing: Windows says AMD64 and macOS arm64.
    """
    machine = platform.machine().lower()
    return platform.system().lower(), {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def covers(capabilities: tuple[str, ...], sm: str) -> bool:
    """Tell whether a list of compute capabilities, `8.0+` among them, holds one."""
    here = _numbers(sm)
    return any(
        here >= _numbers(c[:-1]) if c.endswith("+") else here == _numbers(c) for c in capabilities
    )


def _numbers(capability: str) -> tuple[int, ...]:
    return tuple(int(n) for n in capability.split("."))


def _parse(hint: Any, value: Any, where: str) -> Any:
    """Turn JSON into a value of exactly one type: no field more or less, no conversion."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return None if value is None else _parse(inner[0], value, where)
    if origin is Literal and value in inner and isinstance(value, str):
        return value
    if origin is tuple and isinstance(value, list):
        if inner[-1] is Ellipsis:
            return tuple(_parse(inner[0], v, f"{where}[{i}]") for i, v in enumerate(value))
        if len(value) == len(inner):
            pairs = enumerate(zip(inner, value, strict=True))
            return tuple(_parse(h, v, f"{where}[{i}]") for i, (h, v) in pairs)
    if isinstance(value, dict) and all(k.isprintable() for k in value):
        if origin is Mapping:
            return {k: _parse(inner[1], v, f"{where}.{k}") for k, v in value.items()}
        if is_dataclass(hint):
            return _parse_fields(hint, value, where)
    if hint is str and isinstance(value, str) and len(value) <= _LONGEST and value.isprintable():
        return value  # unprintable text would break the one line of an error
    if hint is int and type(value) is int:
        return value
    if hint is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return value
    raise EngineError(f"{where.lstrip('.') or 'it'} is not {_name(hint)}")


def _parse_fields(hint: Any, value: dict[str, Any], where: str) -> Any:
    hints = get_type_hints(hint)
    names = [f.name for f in fields(hint)]
    for name in names:
        if name not in value:
            raise EngineError(f"{where}.{name}".lstrip(".") + " is missing")
    for name in value:
        if name not in hints:
            raise EngineError(f"{where}.{name}".lstrip(".") + " is not known")
    return hint(**{name: _parse(hints[name], value[name], f"{where}.{name}") for name in names})


def _name(hint: Any) -> str:
    origin = get_origin(hint)
    if origin is Literal:
        return "one of " + ", ".join(get_args(hint))
    if origin is tuple:
        return "a list as long as it should be"
    plain = {str: "a line of text", int: "a whole number", float: "a number"}
    return plain.get(hint, "an object")
