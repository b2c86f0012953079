"""ONNX Runtime on the CPU: the backend that is always there."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrestore.arrays import F32, U8
from fastrestore.backend import blank_batch, has_state
from fastrestore.environment import usable_cores
from fastrestore.errors import ModelError
from fastrestore.spec import ModelSpec


class OrtBackend:
    """One session. Calls from several threads are allowed: a session has no state of its own."""

    name = "ort"

    def __init__(self, model: bytes, spec: ModelSpec, threads: int | None = None) -> None:
        import onnxruntime as ort

        self.spec = spec
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or usable_cores()
        options.log_severity_level = 4  # errors come as exceptions, not as lines on stderr
        # Spinning threads win nothing on an idle machine and lose 1.7 x on a shared one.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session: Any = None
        try:
            # Bytes, not a path: a path would let the file name other files as its data.
            self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as e:  # ONNX Runtime's exceptions share no base but Exception
            raise ModelError(f"{spec.name}: ONNX Runtime cannot load it ({_first_line(e)})") from e
        self._has_state = has_state(
            spec.name,
            [i.name for i in self._session.get_inputs()],
            [o.name for o in self._session.get_outputs()],
        )

    def run(self, frame: U8, mask: U8, state: U8, sigma: F32) -> tuple[U8, U8]:
        """See `Backend.run`."""
        feeds = {"frame": frame, "mask": mask, "sigma": sigma}
        outputs = ["restored"]
        if self._has_state:
            feeds["state"] = state
            outputs.append("state_out")
        try:
            out = self._session.run(outputs, feeds)
        except Exception as e:  # out of memory, mostly; see above
            size = f"{frame.shape[2]}x{frame.shape[1]}"
            raise ModelError(f"{self.spec.name}: failed on {size} px ({_first_line(e)})") from e
        return out[0], out[1] if self._has_state else np.zeros_like(state)

    def warm_up(self, shape: tuple[int, int, int]) -> None:
        """See `Backend.warm_up`."""
        self.run(*blank_batch(shape))

    def close(self) -> None:
        """See `Backend.close`."""
        self._session = None


def _first_line(e: Exception) -> str:
    return str(e).splitlines()[0][:200] if str(e) else type(e).__name__
