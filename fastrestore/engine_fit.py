"""Whether an engine's sidecar fits this machine and what is wanted, and what to do if not."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from fastrestore._version import __version__
from fastrestore.atomic import label
from fastrestore.backend import shipped_models
from fastrestore.engine_record import TITLES, DeviceRecord, EngineRecord, Product, covers, system
from fastrestore.errors import EngineError, InputError

BUILD = "fastrestore build-engine"
ANEW = f"build it again with {BUILD}"  # where no sidecar says from what
TARGETS: dict[Product, str] = {"tensorrt": "tensorrt", "tensorrt_rtx": "rtx"}  # of commands
WINDOWS = "windows"  # as a sidecar has it
_OTHER_MODEL = "was built from another model"
_OPT_LEVEL = 3  # what the builder takes if it is told none


@dataclass(frozen=True, slots=True)
class Expected:
    """What an engine must fit: this machine, and what is wanted of it. None = not compared.

    Attributes:
        product: The runtime at hand.
        version: Its version, all four parts.
        device: The GPU it will run on.
        model_sha256: SHA-256 of the ONNX file that it must have been built from.
        model_name: That model's name or path, for the mending command.
        shape: `(N, H, W)` of the frames that it must take.
        index: Of the GPU among those that are visible, for the mending command.
        os: See `engine_record.system`.
        arch: Likewise.
    """

    product: Product | None = None
    version: str | None = None
    device: DeviceRecord | None = None
    model_sha256: str | None = None
    model_name: str | None = None
    shape: tuple[int, int, int] | None = None
    index: int = 0
    os: str | None = field(default_factory=lambda: system()[0])
    arch: str | None = field(default_factory=lambda: system()[1])


def shape_text(dims: tuple[int, ...]) -> str:
    """Return a shape as `1x736x1280`."""
    return "x".join(map(str, dims))


def argument(path: str | os.PathLike[str]) -> str:
    """Return a path as a shell takes it, in one line; never one that looks like an option."""
    text = os.fspath(path)
    text = f"./{text}" if text.startswith("-") else text
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + "".join(map(_escaped, text)) + "'"


def _escaped(character: str) -> str:
    if character.isprintable() and character not in "\\'":
        return character
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))


def cache_holds(path: str | os.PathLike[str], folder: str = "") -> bool:
    """Tell whether a path lies in the cache or one of its folders, or is that itself."""
    from fastrestore.engine_cache import root  # which imports this module

    try:
        place = (root() / folder).resolve()
    except InputError:  # there is no cache
        return False
    target = Path(os.path.abspath(path))
    return place in (target.resolve(), *target.parent.resolve().parents, target.parent.resolve())


def build_command(model_sha256: str | None, model_name: str | None, options: list[str]) -> str:
    """Return a command that builds an engine; in words what is not known of it.

    Args:
        model_sha256: Of the model's file; None = not known.
        model_name: Its name or path; None = not known.
        options: The rest, ready for a shell.
    """
    shipped = _shipped()
    name = shipped.get(model_sha256 or "")
    if model_name is not None and model_name.endswith(".onnx"):
        name = argument(model_name)
    elif model_sha256 is None and model_name in shipped.values():
        name = model_name
    if name is None:  # a name alone finds no file that does not ship
        return f"build it again from its .onnx: `{' '.join([BUILD, 'FILE.onnx', *options])}`"
    return f"`{' '.join([BUILD, name, *options])}`"


@lru_cache(maxsize=1)
def _shipped() -> dict[str, str]:
    """Return SHA-256 to name of every shipped model file."""
    return {hashlib.sha256(p.read_bytes()).hexdigest(): p.stem for p in shipped_models()}


def rebuild(
    record: EngineRecord,
    expected: Expected | None = None,
    path: str | os.PathLike[str] | None = None,
    is_damaged: bool = False,
) -> str:
    """Return how to build an engine anew, as it is now expected to be.

    Args:
        record: Its sidecar.
        expected: What it must fit.
        path: Where it lies; None = in the cache.
        is_damaged: Whether that very file must be replaced, because it would be found again.

    Returns:
        A command in backticks, after some words if its model does not ship. Or which backend to
        take, where the wanted one is not installed.
    """
    wanted = expected or Expected(os=None, arch=None)
    product = wanted.product or record.product
    if product != record.product and wanted.version is None:
        return f"use --backend {TARGETS[record.product]}"
    words = ["--rebuild", "--target", TARGETS[product]]
    words += ["--precision", record.precision, *_size_options(record, wanted.shape)]
    words += ["--calibration", argument(record.calibration)] if record.calibration else []
    if product == record.product:
        words += _product_options(record, wanted)
    level = asked_level(record)
    words += ["--opt-level", str(level)] if level != _OPT_LEVEL else []
    words += [] if record.workspace_mb is None else ["--workspace", str(record.workspace_mb)]
    words += ["--device", str(wanted.index)] if wanted.index else []
    words += _output_options(record, path, is_damaged)
    sha256 = wanted.model_sha256 or record.model.sha256
    return build_command(sha256, wanted.model_name, words)


def lowered(asked: int, level: int) -> str:
    """Return the reason of an engine that the builder's level asked for did not give."""
    return f"opt level {asked}: a layer found no kernel, built with {level}"


def asked_level(record: EngineRecord) -> int:
    """Return the builder's level that was asked for; `opt_level` is the one that it took."""
    told = (re.match("opt level ([0-5]): a layer found no kernel", r) for r in record.reasons)
    return next((int(found[1]) for found in told if found), record.opt_level)


def _output_options(
    record: EngineRecord, path: str | os.PathLike[str] | None, is_damaged: bool
) -> list[str]:
    """Name the file, unless the cache gives the new engine the same name."""
    is_renamed = is_damaged and record.code_version != __version__  # which is part of the name
    if path is None or (cache_holds(path, "engines") and not is_renamed):
        return []
    return ["-o", argument(path)]


def _product_options(record: EngineRecord, wanted: Expected) -> list[str]:
    """Return what one product alone can be told."""
    if record.product == "tensorrt":
        return ["--plugins", "on"] if record.plugins else []
    is_for_windows = (wanted.os or record.os) == WINDOWS != system()[0]
    return [*_capability_options(record, wanted.device), *(["--windows"] * is_for_windows)]


def _size_options(record: EngineRecord, shape: tuple[int, int, int] | None) -> list[str]:
    low, best, high = (dims[:3] for dims in record.profile["frame"])
    frames = best[0] if shape is None else shape[0]
    if low[1:] == high[1:]:
        _, h, w = shape or best
        words = ["--for", f"{w}x{h}"]
    else:
        _, h, w = shape or best  # what is wanted need not be within
        ends = [(min(low[1], h), min(low[2], w)), best[1:], (max(high[1], h), max(high[2], w))]
        words = ["--dynamic", *(f"{width}x{height}" for height, width in ends)]
    return words + (["--batch", str(frames)] if frames > 1 else [])


def _capability_options(record: EngineRecord, device: DeviceRecord | None) -> list[str]:
    """Return the GPUs that an engine of TensorRT-RTX is for, with the one at hand."""
    if record.device is not None:
        return ["--compute-capability", "current"]
    named = [c for c in record.compute_capabilities if not c.endswith("+")]  # 8.0+ = the default
    if device is not None and not covers(record.compute_capabilities, device.sm):
        named.append(device.sm)
    return [word for c in named for word in ("--compute-capability", c)]


def refuse_other(path: str | os.PathLike[str], record: EngineRecord, expected: Expected) -> None:
    """Compare a sidecar with what is expected.

    Args:
        path: The engine, for messages.
        record: Its sidecar.
        expected: What it must fit.

    Raises:
        EngineError: The first difference, in the order of `check_engine`.
    """
    reason = next(iter(differences(record, expected)), None)
    if reason is not None:
        other = _model_option(path, record) if reason.startswith(_OTHER_MODEL) else ""
        raise EngineError(f"{label(path)}: {reason}; {other}{rebuild(record, expected, path)}")


def _model_option(path: str | os.PathLike[str], record: EngineRecord) -> str:
    """Return how to run an engine that the user named with its own model."""
    if cache_holds(path, "engines"):
        return ""
    name = _shipped().get(record.model.sha256)
    return f"add --model {name}, or " if name else "name its .onnx with --model, or "


def differences(record: EngineRecord, expected: Expected) -> Iterator[str]:
    """Yield what does not fit, in words."""
    title = TITLES[record.product]
    if expected.product not in (None, record.product):
        here = "wanted is one of" if expected.version is None else "here runs"
        yield f"is an engine of {title}, {here} {TITLES[expected.product]}"
    if expected.version not in (None, record.product_version):
        yield f"was built by {title} {record.product_version}, here runs {expected.version}"
    system_here = expected.os or record.os, expected.arch or record.arch
    if system_here != (record.os, record.arch):
        yield f"was built for {record.os} {record.arch}, this is {' '.join(system_here)}"
    if expected.device is not None and not _runs_on(record, expected.device):
        if record.device is None:
            built = f"compute capability {', '.join(record.compute_capabilities)}"
        else:
            built = f"{record.device.name} ({record.device.sm})"
        yield f"was built for {built}, this is {expected.device.name} ({expected.device.sm})"
    if expected.model_sha256 not in (None, record.model.sha256):
        yield (
            f"{_OTHER_MODEL}, {record.model.name} version {record.model.version} "
            f"({record.model.sha256[:12]}...), wanted is {expected.model_name or 'one'} "
            f"({expected.model_sha256[:12]}...)"
        )
    if expected.shape is not None:
        yield from _shape_difference(record, expected.shape)


def _runs_on(record: EngineRecord, device: DeviceRecord) -> bool:
    if record.device is None:
        return covers(record.compute_capabilities, device.sm)
    if record.product == "tensorrt_rtx":  # it compiles its kernels on the machine itself
        return record.device.sm == device.sm
    return record.device == device


def _shape_difference(record: EngineRecord, shape: tuple[int, int, int]) -> Iterator[str]:
    low, _, high = (dims[:3] for dims in record.profile["frame"])
    nearest = tuple(min(max(n, a), b) for n, a, b in zip(shape, low, high, strict=False))
    if nearest == shape:
        return
    sizes = (
        shape_text(low)
        if low == high
        else f"{shape_text(low)} to {shape_text(high)}, nearest {shape_text(nearest)}"
    )
    yield f"takes frames of {sizes}, not {shape_text(shape)}"
