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

BackendName = Literal["auto", "ort", "openvino", "triton"]
_OPTION: dict[Kind, str] = {"restorer": "--model", "detector": "--detector"}


class Backend(Protocol):
    """A loaded model that runs. Not thread-safe unless the class says so."""

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


def find_model(model: str | Path) -> Path:
    """Turn a shipped model's name or a path into the path of an ONNX file.

    Raises:
        ModelError: Neither a shipped name nor a file.
    """
    shipped = {p.stem: p for p in sorted(weights_folder().glob("*.onnx"), key=lambda p: p.stem)}
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


def open_backend(model: str | Path, name: str = "auto", threads: int | None = None) -> Backend:
    """Load a model on a backend.

    Args:
        model: A shipped model's name, or the path of an ONNX file with a spec.
        name: `ort`, `openvino`, `triton` (our kernels on a CUDA device), or `auto` = ONNX
            Runtime: it loads in a tenth of the time, and a picture is restored before OpenVINO
            has compiled its graph.
        threads: CPU threads; None = as many as the process may use.

    Raises:
        InputError: No backend of that name.
        ModelError: The model is absent, foreign or broken, or the backend's device is absent.
        MissingExtraError: The backend's library is not installed.
    """
    if name not in get_args(BackendName):
        known = ", ".join(get_args(BackendName))
        raise InputError(f"backend {name}: not known; choose one of {known}")
    data, spec = read_model(model, "restorer")
    if name == "openvino":
        from fastrestore.backends.openvino import OpenVinoBackend

        return OpenVinoBackend(data, spec, threads)
    if name == "triton":
        backend: Backend = need("fastrestore.kernels.backend", "kernels").TritonBackend(data, spec)
        return backend
    from fastrestore.backends.ort import OrtBackend

    return OrtBackend(data, spec, threads)
