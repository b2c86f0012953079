"""The Backend protocol and how one is chosen."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np

from fastrestore.arrays import F32, U8
from fastrestore.errors import InputError, ModelError, need
from fastrestore.spec import Kind, ModelSpec, read_spec

BackendName = Literal["auto", "ort", "openvino", "tensorrt", "rtx", "triton"]
Shape = tuple[int, int, int]
"""`(N, H, W)`"""
Frames = tuple[Shape, Shape]
"""Smallest and largest `(N, H, W)` that something takes, both included."""

_OPTION: dict[Kind, str] = {"restorer": "--model", "detector": "--detector"}


class Backend(Protocol):
    """A loaded model that runs. Not thread-safe unless the class says so.

    One that runs at certain sizes alone has an attribute `frames` besides; see `frames_of`.
    """

    name: str
    spec: ModelSpec

    def run(self, frame: U8, mask: U8, state: U8, sigma: F32) -> tuple[U8, U8]:
        """Restore one batch that is already padded.

        Args:
            frame: uint8 RGB, `(N, H, W, 3)`; H and W multiples of `spec.multiple`.
            mask: uint8, `(N, H, W, 1)`; any nonzero value = hole.
            state: uint8, `(N, H, W, 4)`; fused base and confidence, zeros = no history.
            sigma: float32, `(N,)`, noise on the 0-255 scale, 0 to 254; 0 = known pixels stay.

        Returns:
            Restored `(N, H, W, 3)` (not composited) and the next state `(N, H, W, 4)`, uint8.
        """

    def warm_up(self, shape: tuple[int, int, int]) -> None:
        """Run once at `(N, H, W)` so that the next run of that shape is a typical one."""

    def close(self) -> None:
        """Free what the backend holds; it cannot run afterwards."""


def blank_batch(shape: tuple[int, int, int]) -> tuple[U8, U8, U8, F32]:
    """Return frame, mask, state and sigma of zeros for `(N, H, W)`."""
    frame, mask, state = (np.zeros((*shape, c), np.uint8) for c in (3, 1, 4))
    return frame, mask, state, np.zeros(shape[0], np.float32)


def frames_of(backend: Backend) -> tuple[Frames, ...] | None:
    """Return which sizes a backend takes; None = any."""
    found: tuple[Frames, ...] | None = getattr(backend, "frames", None)
    return found


def check_batch(spec: ModelSpec, frame: U8, mask: U8, state: U8, sigma: F32) -> None:
    """Refuse what `Backend.run` does not allow: native code would read beyond the arrays.

    Raises:
        InputError: An array of another shape or dtype.
    """
    m, shape = spec.multiple, frame.shape[:3]
    if len(shape) != 3 or min(shape) < 1 or shape[1] % m or shape[2] % m:
        raise InputError(
            f"{spec.name}: frame must be (N, H, W, 3) with H and W multiples of {m}, "
            f"got {frame.shape}"
        )
    pictures = {"frame": (frame, 3), "mask": (mask, 1), "state": (state, 4)}
    wanted: list[tuple[str, np.ndarray, tuple[int, ...], str]] = [
        (name, array, (*shape, c), "uint8") for name, (array, c) in pictures.items()
    ]
    wanted.append(("sigma", sigma, shape[:1], "float32"))
    for name, array, size, dtype in wanted:
        if array.shape != size or array.dtype != dtype:
            raise InputError(
                f"{spec.name}: {name} must be {dtype} {size}, got {array.dtype} {array.shape}"
            )


def has_state(model: str, inputs: Iterable[str], outputs: Iterable[str]) -> bool:
    """Return whether a graph keeps a state; one for stills only has none.

    Raises:
        ModelError: It takes or gives something else than a restorer.
    """
    names = {*inputs, *outputs}
    missing = {"frame", "mask", "sigma", "restored"} ^ (names - {"state", "state_out"})
    if missing or ("state" in names) != ("state_out" in names):
        raise ModelError(
            f"{model}: its inputs and outputs are not those of a restorer "
            f"({', '.join(sorted(missing)) or 'half a state'}); export it with `fastrestore export`"
        )
    return "state" in names


def weights_folder() -> Path:
    """Return the folder of the models inside the package."""
    return Path(str(resources.files("fastrestore") / "weights"))


def shipped_models() -> list[Path]:
    """Return the model files in the package; `NAME.int8.onnx` is NAME's form for engines."""
    paths = sorted(weights_folder().glob("*.onnx"), key=lambda p: p.stem)
    return [p for p in paths if not p.stem.endswith(".int8")]


def find_model(model: str | Path) -> Path:
    """Turn a shipped model's name or a path into the path of an ONNX file.

    Raises:
        ModelError: Neither a shipped name nor a file.
    """
    shipped = {p.stem: p for p in shipped_models()}
    if str(model) in shipped:
        return shipped[str(model)]
    path = Path(model)
    if not path.is_file():
        names = ", ".join(shipped) or "none"
        raise ModelError(f"{model}: no such model; shipped: {names}; or give the path of an .onnx")
    return path


def read_model(model: str | Path, kind: Kind) -> tuple[bytes, ModelSpec]:
    """Read a model file of one kind, and what it says of itself.

    Args:
        model: A shipped model's name, or the path of an ONNX file with a spec.
        kind: What it must be.

    Raises:
        ModelError: The model is absent, foreign, damaged or of the other kind.
    """
    path = find_model(model)
    try:
        data = path.read_bytes()
    except OSError as e:
        raise ModelError(f"{path}: cannot be read ({e.strerror})") from e
    spec = read_spec(data, str(path))
    if spec.kind != kind:
        raise ModelError(
            f"{path}: is a {spec.kind}, not a {kind}; it goes with {_OPTION[spec.kind]}"
        )
    return data, spec


def open_backend(
    model: str | Path,
    name: str = "auto",
    threads: int | None = None,
    *,
    device: int = 0,
    engine: str | Path | None = None,
    trust_engine: bool = False,
) -> Backend:
    """Load a model on a backend.

    Args:
        model: A shipped model's name, or the path of an ONNX file with a spec.
        name: `ort`, `openvino`, `tensorrt` or `rtx` (engines that `build-engine` made), `triton`
            (our kernels on a CUDA device), or `auto` = a verified engine of the model that fits
            this machine, else ONNX Runtime: it loads in a tenth of the time that OpenVINO takes,
            and a picture is restored before OpenVINO has compiled its graph.
        threads: CPU threads; None = as many as the process may use.
        device: CUDA device, among those that CUDA_VISIBLE_DEVICES leaves.
        engine: An engine file, instead of those in the cache; goes with `tensorrt`, `rtx`, `auto`.
        trust_engine: Accept an engine without a sidecar, or that others could have changed.

    Raises:
        InputError: No backend of that name, or one that takes no engine.
        ModelError: The model is absent, foreign or broken, or the backend's device is absent.
        EngineError: No engine fits, or it cannot be loaded.
        MissingExtraError: The backend's library is not installed.
    """
    if name not in get_args(BackendName):
        known = ", ".join(get_args(BackendName))
        raise InputError(f"backend {name}: not known; choose one of {known}")
    if engine is not None and name not in ("auto", "tensorrt", "rtx"):
        raise InputError(f"{engine}: backend {name} takes no engine; leave --backend or it away")
    data, spec = read_model(model, "restorer")
    if name in ("auto", "tensorrt", "rtx"):
        from fastrestore.backends import engine_choice

        wish = engine_choice.Wish(data, spec, str(model), device, trust_engine)
        if engine is not None:
            return engine_choice.open_file(wish, engine, name)
        if name != "auto":
            return engine_choice.open_best(wish, name)
        found = engine_choice.open_auto(wish)
        if found is not None:
            return found
    if name == "openvino":
        from fastrestore.backends.openvino import OpenVinoBackend

        return OpenVinoBackend(data, spec, threads)
    if name == "triton":
        module = need("fastrestore.kernels.backend", "kernels")
        backend: Backend = module.TritonBackend(data, spec, device=f"cuda:{device}")
        return backend
    from fastrestore.backends.ort import OrtBackend

    return OrtBackend(data, spec, threads)
