"""Whether an engine's sidecar fits this machine and what is wanted, and what to do if not."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field

from fastrestore.atomic import label
from fastrestore.engine_record import TITLES, DeviceRecord, EngineRecord, Product, covers, system
from fastrestore.errors import EngineError

BUILD = "fastrestore build-engine"
ANEW = f"`{BUILD} MODEL --rebuild`"  # where no sidecar says which model


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
        os: See `engine_record.system`.
        arch: Likewise.
    """

    product: Product | None = None
    version: str | None = None
    device: DeviceRecord | None = None
    model_sha256: str | None = None
    model_name: str | None = None
    shape: tuple[int, int, int] | None = None
    os: str | None = field(default_factory=lambda: system()[0])
    arch: str | None = field(default_factory=lambda: system()[1])


def shape_text(dims: tuple[int, ...]) -> str:
    """Return a shape as `1x736x1280`."""
    return "x".join(map(str, dims))


def rebuild(record: EngineRecord, expected: Expected | None = None) -> str:
    """Return the command that builds an engine anew, as it is now expected to be."""
    wanted = expected or Expected()
    product = wanted.product or record.product
    words = [BUILD, shlex.quote(wanted.model_name or record.model.name), "--rebuild"]
    words += ["--target", "rtx" if product == "tensorrt_rtx" else "tensorrt"]
    words += ["--precision", record.precision]
    shape = wanted.shape or record.profile.get("frame", ((), (), ()))[1]
    if len(shape) >= 3:
        words += ["--for", f"{shape[2]}x{shape[1]}"]
        words += ["--batch", str(shape[0])] if shape[0] > 1 else []
    return "`" + " ".join(words) + "`"


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
        raise EngineError(f"{label(path)}: {reason}; {rebuild(record, expected)}")


def differences(record: EngineRecord, expected: Expected) -> Iterator[str]:
    """Yield what does not fit, in words."""
    title = TITLES[record.product]
    if expected.product not in (None, record.product):
        yield f"is an engine of {title}, here runs {TITLES[expected.product]}"
    if expected.version not in (None, record.product_version):
        yield f"was built by {title} {record.product_version}, here runs {expected.version}"
    here = expected.os or record.os, expected.arch or record.arch
    if here != (record.os, record.arch):
        yield f"was built for {record.os} {record.arch}, this is {' '.join(here)}"
    if expected.device is not None and not _runs_on(record, expected.device):
        if record.device is None:
            built = f"compute capability {', '.join(record.compute_capabilities)}"
        else:
            built = f"{record.device.name} ({record.device.sm})"
        yield f"was built for {built}, this is {expected.device.name} ({expected.device.sm})"
    if expected.model_sha256 not in (None, record.model.sha256):
        yield (
            f"was built from another model, {record.model.name} version {record.model.version} "
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
    if "frame" not in record.profile:
        yield "takes no frame"
        return
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
