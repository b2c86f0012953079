"""ONNX Runtime on the CPU: the backend that is always there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fastrestore.arrays import F32, U8
from fastrestore.backend import blank_batch, has_state
from fastrestore.environment import usable_cores
from fastrestore.errors import ModelError
from fastrestore.spec import ModelSpec


class OrtBackend:
    """One session. Calls from several threads are allowed: a session has no state of its own."""

    name = "ort"

    def __init__(self, model: bytes, spec: ModelSpec, threads: int | None = None) -> None:
        self.spec = spec
        self._session: Any = open_session(model, spec.name, threads)
        self._has_state = has_state(
            spec.name,
            [i.name for i in self._session.get_inputs()],
            [o.name for o in self._session.get_outputs()],
        )

    def run(self, frame: U8, mask: U8, state: U8, sigma: F32) -> tuple[U8, U8]:
        """See `Backend.run`."""
        feeds: dict[str, npt.NDArray[Any]] = {"frame": frame, "mask": mask, "sigma": sigma}
        outputs = ["restored"]
        if self._has_state:
            feeds["state"] = state
            outputs.append("state_out")
        out = run_session(self._session, self.spec.name, outputs, feeds)
        return out[0], out[1] if self._has_state else np.zeros_like(state)

    def warm_up(self, shape: tuple[int, int, int]) -> None:
        """See `Backend.warm_up`."""
        self.run(*blank_batch(shape))

    def close(self) -> None:
        """See `Backend.close`."""
        self._session = None


def open_session(model: bytes, name: str, threads: int | None = None) -> Any:
    """Open a session on the CPU.

    Args:
        model: Bytes of an ONNX file.
        name: What messages call it.
        threads: CPU threads; None = as many as the process may use.

    Raises:
        ModelError: ONNX Runtime refuses the model.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    options.log_severity_level = 4  # errors come as exceptions, not as lines on stderr
    # Spinning threads win nothing on an idle machine and lose 1.7 x on a shared one.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        # Bytes, not a path: a path would let the file name other files as its data.
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as e:  # ONNX Runtime's exceptions share no base but Exception
        raise ModelError(f"{name}: ONNX Runtime cannot load it ({_first_line(e)})") from e


def run_session(
    session: Any, name: str, outputs: list[str], feeds: Mapping[str, npt.NDArray[Any]]
) -> list[U8]:
    """Run a session on a batch with a `frame`.

    Raises:
        ModelError: It failed.
    """
    try:
        out: list[U8] = session.run(outputs, feeds)
    except Exception as e:  # out of memory, mostly; see above
        h, w = feeds["frame"].shape[1:3]
        raise ModelError(f"{name}: failed on {w}x{h} px ({_first_line(e)})") from e
    return out


def _first_line(e: Exception) -> str:
    return str(e).splitlines()[0][:200] if str(e) else type(e).__name__
