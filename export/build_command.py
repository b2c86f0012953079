"""`fastrestore build-engine`."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import click

from fastrestore.atomic import label
from fastrestore.engine_cache import timing_cache
from fastrestore.engine_file import sidecar
from fastrestore.engine_fit import shape_text
from fastrestore.engine_record import Precision, Product
from fastrestore.errors import EngineError, InputError
from fastrestore.export.build_host import Host, look
from fastrestore.export.builder import OPT_LEVEL, AbandonedError, Settings, Size
from fastrestore.export.engine_build import CURRENT, Made, PluginChoice, Request, make
from fastrestore.export.engine_output import refuse_output
from fastrestore.export.forms import Source
from fastrestore.export.timings import read_timings
from fastrestore.export.toolkit import Toolkit, open_toolkit

SCHEMA = 1
TARGETS: dict[str, Product] = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
NAMED = {"720p": (1280, 720), "1080p": (1920, 1080)}
DEFAULT_SIZE = "720p"  # the commonest camera and screen that an edge device has to keep up with
LEAST_PX, MOST_PX = 64, 8192  # smaller profiles fail inside TensorRT's builder
MOST_MB = 1 << 20  # a terabyte, more than any GPU has
OFF = "off"
OPTIONS = {"output": "-o", "calibration": "--calibration", "timings": "--timing-cache"}


@click.command("build-engine", no_args_is_help=True)
@click.argument("model", metavar="MODEL")
@click.option(
    "--target",
    type=click.Choice(list(TARGETS)),
    help="What the engine is for.  [what is installed, tensorrt first]",
)
@click.option(
    "--precision",
    type=click.Choice(["fp16", "int8", "fp32", "bf16", "auto"]),
    default="auto",
    show_default=True,
    help="auto measures fp16 and int8 on this device; without one it is fp16.",
)
@click.option(
    "--for",
    "sizes",
    multiple=True,
    metavar="720p|1080p|WxH",
    help=f"Size of the frames, an engine each; rounded up to what the model takes.  "
    f"[{DEFAULT_SIZE}]",
)
@click.option("--batch", type=click.IntRange(1, 64), default=1, show_default=True)
@click.option(
    "--dynamic",
    nargs=3,
    metavar="MIN OPT MAX",
    help="One engine for all sizes from MIN to MAX, tuned for OPT; each as WxH.",
)
@click.option(
    "--workspace",
    type=click.IntRange(1, MOST_MB),
    metavar="MB",
    help="Scratch memory of a layer.  [half of what is free, which is also the most]",
)
@click.option("--opt-level", type=click.IntRange(0, 5), default=OPT_LEVEL, show_default=True)
@click.option(
    "--timing-cache",
    "timings",
    metavar="FILE|off",
    help="Timings of earlier builds; TensorRT only.  [one for each device and version]",
)
@click.option(
    "--plugins",
    type=click.Choice(["auto", "on", "off"]),
    default="off",
    show_default=True,
    help="Our kernels inside the engine, TensorRT 10.9 and newer; auto measures both ways.",
)
@click.option("--calibration", metavar="DIR", help="Make INT8 anew from these pictures, 8 or more.")
@click.option(
    "--compute-capability",
    "capabilities",
    multiple=True,
    metavar="8.9|current",
    help="RTX: GPUs that it is for, several.  [8.0 and newer]",
)
@click.option("--windows", is_flag=True, help="RTX: for Windows; 1.7.1 refuses it.")
@click.option("--device", type=click.IntRange(0), help="Index of the GPU.  [0]")
@click.option("--rebuild", is_flag=True, help="Even if it is there; the old one stays until then.")
@click.option("-o", "--output", metavar="FILE", help="FILE and FILE.json.  [the engine cache]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def command(model: str, as_json: bool, **options: Any) -> None:
    """Build a TensorRT or TensorRT-RTX engine of MODEL that is checked before it is used.

    MODEL is the name of a shipped model or an .onnx made by `fastrestore export`. After the build
    the engine is compared with ONNX Runtime on this machine's GPU; without one it is marked
    unverified. Ctrl+C cancels and leaves nothing.

    \b
    fastrestore build-engine tiny
    fastrestore build-engine tiny --target rtx --precision fp16 --for 1080p
    fastrestore build-engine tiny --dynamic 64x64 1280x720 1920x1088 -o tiny.engine
    """
    try:
        made = [make(request, _say) for request in _requests(model, options)]
    except AbandonedError:
        # The library is inside a step that does not end and cannot be stopped from outside.
        _say("fastrestore: interrupted")
        os._exit(130)
    for engine in made:
        _say(_told(engine))
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "engines": [_row(m) for m in made]}, indent=1))


def _requests(model: str, options: dict[str, Any]) -> list[Request]:
    """Turn the command line into requests; what cannot work is refused before any is built."""
    for name in ("output", "calibration", "timings"):
        if options[name] == "":  # a variable of a script that was not set
            raise InputError(f"{OPTIONS[name]}: is empty; give a name, or leave it out")
    target = options["target"]
    # in one order and each once: else they would make another engine
    capabilities = tuple(sorted({_capability(c) for c in options["capabilities"]}, key=_in_order))
    toolkit = open_toolkit(TARGETS[target] if target else None)
    if target is None:
        _say(f"target: {toolkit.title} {toolkit.version}, which is installed")
    folder = options["calibration"]
    source = Source(model, Path(folder) if folder else None)
    sizes = read_sizes(options["sizes"], options["dynamic"], options["batch"], source.spec.multiple)
    output = options["output"]
    if output and len(sizes) > 1:
        raise InputError(f"{label(output)}: -o names one engine, --for asks for {len(sizes)}")
    if output:
        refuse_output(Path(output), source.path, options["rebuild"])
    host = look(options["device"], is_needed=not toolkit.is_portable)
    settings = Settings(
        opt_level=options["opt_level"],
        timing_cache=_timings(toolkit, host, options["timings"]),
        capabilities=capabilities,
        windows=options["windows"],
    )
    precision: Precision | Literal["auto"] = options["precision"]
    plugins: PluginChoice = options["plugins"]
    requests = [
        Request(
            source=source,
            toolkit=toolkit,
            host=host,
            sizes=size,
            precision=precision,
            plugins=plugins,
            settings=settings,
            workspace_mb=options["workspace"],
            output=Path(output) if output else None,
            rebuild=options["rebuild"],
        )
        for size in sizes
    ]
    _refuse_request(requests[0])
    return requests


def read_sizes(
    names: tuple[str, ...], dynamic: tuple[str, str, str] | None, batch: int, multiple: int
) -> list[tuple[Size, Size, Size]]:
    """Return smallest, best and largest shape of every engine.

    Args:
        names: Of static sizes: `720p`, `1080p` or `WxH`; rounded up to the multiple.
        dynamic: Smallest, best and largest `WxH` of one engine; refused if no multiples, since
            TensorRT only warns and builds an engine that fails later.
        batch: Frames; a dynamic engine takes one and more.
        multiple: Of the model's spec.

    Raises:
        InputError: A size that cannot be read, or that no engine can have.
    """
    if dynamic and names:
        raise InputError("--for and --dynamic: give one of them")
    if not dynamic:
        found = []
        for name in dict.fromkeys(names or (DEFAULT_SIZE,)):
            w, h = (-(-side // multiple) * multiple for side in _size(name, multiple))
            found.append(((batch, h, w),) * 3)
        return list(dict.fromkeys(found))
    shapes = []
    for name, frames in zip(dynamic, (1, batch, batch), strict=True):
        w, h = _size(name, LEAST_PX)
        if w % multiple or h % multiple:
            near = "x".join(str(-(-side // multiple) * multiple) for side in (w, h))
            raise InputError(
                f"--dynamic {name}: the model takes multiples of {multiple} px; use {near}"
            )
        shapes.append((frames, h, w))
    low, best, high = shapes
    if not all(a <= b <= c for a, b, c in zip(low, best, high, strict=True)):
        raise InputError(f"--dynamic {' '.join(dynamic)}: give MIN OPT MAX, from small to large")
    return [(low, best, high)]


def _size(name: str, least: int) -> tuple[int, int]:
    """Read a width and a height."""
    if name in NAMED:
        return NAMED[name]
    found = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", name)
    if not found:
        raise InputError(f"size {name}: is not {', '.join(NAMED)} or WxH such as 1280x720")
    w, h = int(found[1]), int(found[2])
    if not (least <= min(w, h) and max(w, h) <= MOST_PX):
        raise InputError(f"size {name}: each side must be {least} to {MOST_PX} px")
    return w, h


def _capability(text: str) -> str:
    """Read `8.9`, `89`, `sm_89` or `current`."""
    number = re.fullmatch(r"(?:sm_?)?([0-9]{1,2})\.?([0-9])", text.lower())
    if text != "current" and not number:
        raise InputError(f"--compute-capability {text}: write it as 8.9, or current")
    return f"{number[1]}.{number[2]}" if number else text


def _in_order(capability: str) -> tuple[int, ...]:
    return tuple(int(n) for n in capability.split(".")) if capability != CURRENT else ()


def _timings(toolkit: Toolkit, host: Host, given: str | None) -> Path | None:
    """Return where timings are kept; refuse a file of something else before anything is built."""
    if given == OFF:
        return None
    if toolkit.is_portable or host.device is None:
        if given:
            _say(f"--timing-cache {label(given)}: is not used, {toolkit.title} times nothing")
        return None
    path = Path(given) if given else timing_cache(host.device, toolkit.version)
    read_timings(path)
    return path


def _told(made: Made) -> str:
    """Return one line on an engine."""
    record, v = made.record, made.record.verification
    low, best, high = (shape_text(dims[:3]) for dims in record.profile["frame"])
    size = best if record.is_static else f"{low} to {high}"
    how = "is there already" if made.is_reused else f"built in {record.build_seconds:.1f} s"
    if v is None:
        checked = next((r for r in record.reasons if r.startswith("unverified")), "unverified")
    else:
        near = "the same as FP32" if v.psnr is None else f"{v.psnr:.1f} dB from FP32"
        checked = f"verified, {near}, {v.mean_latency_ms:.2f} ms"
    mb = record.engine_bytes / 1e6
    return f"{label(made.path)}: {how}, {record.precision}, {size}, {mb:.1f} MB; {checked}"


def _row(made: Made) -> dict[str, Any]:
    return {
        "path": str(made.path),
        "sidecar": str(sidecar(made.path)),
        "reused": made.is_reused,
        "record": asdict(made.record),
    }


def _say(line: str) -> None:
    click.echo(line, err=True)


def _refuse_request(request: Request) -> None:
    """Refuse what cannot work at all.

    Raises:
        EngineError: The library lacks something.
        InputError: The choices contradict each other, or the model cannot have the precision.
        ModelError: The INT8 file is of another model.
    """
    request.source.check_precision(request.precision)
    settings, kit = request.settings, request.toolkit
    if not kit.is_portable and (settings.capabilities or settings.windows):
        raise InputError("--compute-capability and --windows go with --target rtx alone")
    if CURRENT in settings.capabilities and (len(settings.capabilities) > 1 or settings.windows):
        raise InputError("--compute-capability current: goes neither with others nor --windows")
    if CURRENT in settings.capabilities and request.host.device is None:
        raise EngineError(f"--compute-capability current: no device here ({request.host.why})")
    for capability in settings.capabilities:
        kit.capability(capability)
