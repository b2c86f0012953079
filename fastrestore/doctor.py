"""`fastrestore doctor`: is this installation whole, and does it restore here?

Every check ends in one line: what was found and, unless all is well, how to mend it. Optional
parts that are absent are `ok`. Nothing is written but one temporary file, and torch is
looked up; it is imported only where the backend on it can run. The driver, the CUDA bindings and
TensorRT are asked in other processes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastrestore import doctor_engines, doctor_gpu, doctor_jetson, doctor_tensorrt, environment
from fastrestore.backend import open_backend, shipped_models
from fastrestore.detect import Detector
from fastrestore.doctor_check import Check, Status, broken, guarded
from fastrestore.engine_record import TITLES
from fastrestore.errors import FastRestoreError, ModelError
from fastrestore.spec import ModelSpec, read_spec

SCHEMA = 1
PYTHON = (3, 10)
LOW_MEMORY_MB = 1024  # a 12 megapixel photograph, or 720p video with its encoder
LOW_DISK_MB = 1024
CODECS = ("libx264", "libvpx-vp9", "ffv1")
BACKENDS = {"ort": "onnxruntime", "openvino": "openvino", "triton": "triton"}
OPTIONAL_BACKENDS = {"openvino": "openvino", "triton": "kernels"}  # their extras
CUDA_BACKENDS = ("triton",)
EXTRAS = {"torch": "train", "onnx": "export", "skimage": "evaluate"}
SIDE_PX = 64
# distributions that bring the module `onnxruntime`: of two, each has overwritten parts of the other
RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")
KNOWN_LEVELS = 2  # a known pixel at sigma 0 may differ by this much inside the graph


@dataclass(frozen=True, slots=True)
class Need:
    """A package of the core: what is imported, who may bring it, and from which version on."""

    module: str
    least: str
    distributions: tuple[str, ...]


CORE = (
    Need("numpy", "1.26", ("numpy",)),
    Need("onnxruntime", "1.20", RUNTIMES),
    Need(
        "cv2",
        "4.9",
        (
            "opencv-python-headless",
            "opencv-python",
            "opencv-contrib-python-headless",
            "opencv-contrib-python",
        ),
    ),
    Need("PIL", "10.3", ("pillow",)),
    Need("av", "17.1", ("av",)),
    Need("click", "8.1", ("click",)),
    Need("rich", "13", ("rich",)),
)


def checks() -> list[Check]:
    """Run all checks, the tiny runs of the shipped models last.

    Takes a few seconds, and some more if a driver does not answer.
    """
    gpu = doctor_gpu.look()
    has_device = bool(gpu.devices)
    has_runtime = any(doctor_tensorrt.is_installed(product) for product in TITLES)
    steps: list[tuple[str, Callable[[], Iterator[Check]]]] = [
        ("python", _python),
        ("packages", _packages),
        ("extras", _extras),
        ("cores", _cores),
        ("memory", _memory),
        ("temp folder", _temp_folder),
        ("codecs", _codecs),
        ("Jetson", doctor_jetson.board),
        ("GPU", lambda: doctor_gpu.driver(gpu)),
        ("CUDA binding", lambda: doctor_gpu.bindings(gpu, has_runtime)),
        ("TensorRT", lambda: doctor_tensorrt.runtimes(gpu)),
        ("engines", lambda: doctor_engines.engines(gpu, has_runtime)),
        ("backends", lambda: _backends(has_device)),
        ("models", lambda: _models(has_device)),
    ]
    return [check for name, step in steps for check in guarded(name, step)]


def worst(found: Sequence[Check]) -> Status:
    """Return the most serious status; `ok` if nothing was checked."""
    order: tuple[Status, ...] = ("ok", "warn", "fail")
    return max((c.status for c in found), key=order.index, default="ok")


def to_json(found: Sequence[Check]) -> str:
    """Return one JSON object: `schema`, `status`, `checks`, `env`."""
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "status": worst(found),
        "checks": [asdict(c) for c in found],
        "env": environment.describe(),
    }
    return json.dumps(report, indent=1) + "\n"


def _python() -> Iterator[Check]:
    version = platform.python_version()
    if sys.version_info[:2] >= PYTHON:
        yield Check("python", "ok", version)
    else:
        least = ".".join(map(str, PYTHON))
        yield Check("python", "fail", version, f"install Python {least} or newer")


def _packages() -> Iterator[Check]:
    yield from (_package(need) for need in CORE)
    several = [f"{d} {v}" for d in RUNTIMES if (v := environment.package_version(d))]
    if len(several) > 1:
        names = " ".join(d for d in RUNTIMES if environment.package_version(d))
        mend = f"pip uninstall -y {names} && pip install onnxruntime"
        detail = f"{' and '.join(several)} overwrite each other"
        yield Check("onnxruntime twice", "warn", detail, mend)


def _package(need: Need) -> Check:
    """Find a package without importing it."""
    wanted = f"pip install '{need.distributions[0]}>={need.least}'"
    if importlib.util.find_spec(need.module) is None:
        return Check(need.module, "fail", "not installed", wanted)
    versions = {d: environment.package_version(d) for d in need.distributions}
    name, version = next(((d, v) for d, v in versions.items() if v), ("", None))
    if version is None:  # built by hand, as OpenCV on a Jetson often is
        return Check(need.module, "ok", "present, of unknown version")
    if _numbers(version) < _numbers(need.least):
        return Check(need.module, "fail", f"{name} {version} is too old", wanted)
    return Check(need.module, "ok", f"{name} {version}")


def _numbers(version: str) -> tuple[int, ...]:
    """Return the release part of a version: `1.26.4rc1` is (1, 26, 4)."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(n) for n in found[0].split(".")) if found else ()


def _extras() -> Iterator[Check]:
    for module, extra in EXTRAS.items():
        if importlib.util.find_spec(module) is None:
            detail = f"not installed; optional: pip install 'fastrestore[{extra}]'"
        else:
            detail = environment.package_version(module) or "present, of unknown version"
        yield Check(module, "ok", detail)


def _cores() -> Iterator[Check]:
    cores, load = environment.usable_cores(), environment.load_average()
    if load is not None and environment.is_busy(load[0], cores):
        detail = f"{cores} usable, load average {load[0]:.1f}: figures of speed will be poor"
        yield Check("cores", "warn", detail, "measure when the machine is idle")
    else:
        yield Check("cores", "ok", f"{cores} usable, {environment.cpu_model()}")


def _memory() -> Iterator[Check]:
    memory = environment.memory_mb()
    bounds = [v for v in (memory["available"], memory["limit"]) if v is not None]
    if not bounds:
        yield Check("memory", "ok", "not told by this system")
    elif min(bounds) < LOW_MEMORY_MB:
        mend = "close other programs or raise the container's limit; big pictures may fail"
        yield Check("memory", "warn", f"{min(bounds)} MB to use", mend)
    elif memory["swap_used"]:
        detail = f"{min(bounds)} MB to use, {memory['swap_used']} MB of swap in use"
        yield Check("memory", "warn", detail, "measure speed when nothing is swapped out")
    else:
        yield Check("memory", "ok", f"{min(bounds)} MB to use")


def _temp_folder() -> Iterator[Check]:
    mend = "set TMPDIR to a folder with space that you may write to"
    try:
        folder = tempfile.gettempdir()
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
        free_mb = shutil.disk_usage(folder).free >> 20
    except OSError as e:
        yield Check("temp folder", "fail", f"cannot be written: {e.strerror or e}", mend)
        return
    status: Status = "warn" if free_mb < LOW_DISK_MB else "ok"
    detail = f"{folder}: {free_mb} MB free"
    yield Check("temp folder", status, detail, mend if status == "warn" else "")


def _codecs() -> Iterator[Check]:
    import av

    for name in CODECS:
        try:
            av.Codec(name, "w")
        except ValueError:  # PyAV's UnknownCodecError is one
            mend = "pip install --force-reinstall --only-binary av av (its wheel has this encoder)"
            yield Check(name, "warn", "no such encoder in this PyAV", mend)
        else:
            yield Check(name, "ok", "encoder present")


def _backends(has_device: bool) -> Iterator[Check]:
    """Import each backend's library: this is where a damaged installation shows."""
    for name, module in BACKENDS.items():
        label = f"backend {name}"
        if importlib.util.find_spec(module) is None:
            if name in OPTIONAL_BACKENDS:
                extra = OPTIONAL_BACKENDS[name]
                detail = f"not installed; optional: pip install 'fastrestore[{extra}]'"
                yield Check(label, "ok", detail)
            else:
                yield Check(label, "fail", "not installed", f"pip install {module}")
            continue
        unused = _unused(name, has_device)
        if unused:
            yield Check(label, "ok", f"not used: {unused}")
            continue
        try:
            version = getattr(importlib.import_module(module), "__version__", "unknown version")
        except Exception as e:  # see doctor_check.guarded
            yield broken(label, e, f"pip install --force-reinstall {module}")
        else:
            yield Check(label, "ok", f"{module} {version}")


def _unused(backend: str, has_device: bool) -> str:
    """Return why a backend that is installed cannot be of use here; empty if it can."""
    if backend not in CUDA_BACKENDS:
        return ""
    if not has_device:
        return "no CUDA device here"
    torch = environment.package_version("torch") or ""
    return f"torch {torch} is made for the processor" if "+cpu" in torch else ""


def _models(has_device: bool) -> Iterator[Check]:
    """Check every shipped model: readable, the file its card describes, and alive."""
    models = shipped_models()
    if not models:
        yield Check("models", "fail", "none shipped", "reinstall fastrestore, or use --model FILE")
    for path in models:
        try:
            spec, check = _model_file(path)
        except (FastRestoreError, OSError) as e:
            yield broken(f"model {path.stem}", e, "reinstall fastrestore")
            continue
        yield check
        if spec.kind == "detector":
            yield _tiny_search(path)
            continue
        for backend, module in BACKENDS.items():
            is_installed = importlib.util.find_spec(module) is not None
            if is_installed and not _unused(backend, has_device):
                yield _tiny_run(path, backend)


def _model_file(path: Path) -> tuple[ModelSpec, Check]:
    """Read the spec and compare the bytes with the model card, where there is one."""
    data = path.read_bytes()
    spec = read_spec(data, path.name)
    digest = hashlib.sha256(data).hexdigest()
    stated = card_digest(path.with_suffix(".md"))
    name = f"model {path.stem}"
    if stated is not None and stated != digest:
        detail = f"SHA-256 {digest[:12]}... but its card says {stated[:12]}..."
        return spec, Check(name, "fail", detail, "reinstall fastrestore: the file was changed")
    proof = "not stated by a card" if stated is None else "as on its card"
    detail = f"{spec.preset} version {spec.version}, {spec.track} track, SHA-256 {proof}"
    return spec, Check(name, "ok", detail)


def card_digest(card: Path) -> str | None:
    """Return what a model card states in its line `SHA-256: <hex>`, None without one."""
    if not card.is_file():
        return None
    text = card.read_text(encoding="utf-8", errors="replace")
    found = re.search(r"SHA-256\W*:\W*([0-9a-fA-F]{64})\b", text)
    return found[1].lower() if found else None


def _tiny_search(path: Path) -> Check:
    """Let a detector look at one small frame."""
    name = f"run {path.stem} on ort"
    try:
        with Detector(path, threads=1) as detector:
            found = detector.probability(np.zeros((SIDE_PX, SIDE_PX, 3), np.uint8))
    except Exception as e:  # see doctor_check.guarded
        return broken(name, e, f"reinstall {BACKENDS['ort']} and fastrestore")
    return Check(name, "ok", f"{found.shape[1]}x{found.shape[0]} px searched")


def _tiny_run(path: Path, backend: str) -> Check:
    """Restore one small frame of noise and look at what came out."""
    name = f"run {path.stem} on {backend}"
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (1, SIDE_PX, SIDE_PX, 3), np.uint8)
    mask = np.zeros((1, SIDE_PX, SIDE_PX, 1), np.uint8)
    mask[:, 24:40, 24:40] = 1
    state = np.zeros((1, SIDE_PX, SIDE_PX, 4), np.uint8)
    mend = f"use another --backend, or reinstall {BACKENDS[backend]} and fastrestore"
    try:
        loaded = open_backend(path, backend, threads=1)
        try:
            restored, next_state = loaded.run(frame, mask, state, np.zeros(1, np.float32))
        finally:
            loaded.close()
        for what, got, like in (("picture", restored, frame), ("state", next_state, state)):
            if got.dtype != np.uint8 or got.shape != like.shape:
                raise ModelError(f"{what} came out as {got.dtype} {got.shape}")
    except Exception as e:  # see doctor_check.guarded
        return broken(name, e, mend)
    known = (mask == 0)[..., 0]
    levels = int(np.abs(restored[known].astype(int) - frame[known].astype(int)).max())
    if levels > KNOWN_LEVELS:
        return Check(name, "fail", f"pixels outside the hole moved by {levels} levels", mend)
    return Check(name, "ok", f"{SIDE_PX}x{SIDE_PX} px restored")
