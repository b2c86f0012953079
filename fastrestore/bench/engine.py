"""Level `engine`: the model alone. Device time where the backend tells it, else the call's own."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import cast

import numpy as np

from fastrestore.arrays import U8
from fastrestore.backend import Backend, Shape, find_model, frames_of, open_backend
from fastrestore.bench.device_time import DeviceTimes, Timed
from fastrestore.bench.record import Labels
from fastrestore.bench.subject import Subject, expect
from fastrestore.bench.timing import MAX_SAMPLES
from fastrestore.errors import InputError
from fastrestore.windows import fitting

HOLE = 1 / 16  # of a batch, in one place
SIGMA = 10.0
_QUANTISED = (b"QLinearConv", b"QuantizeLinear")


class Engine:
    """A model on a backend, opened once for all its sizes."""

    def __init__(
        self, model: str, backend: str, threads: int | None = None, device: int = 0
    ) -> None:
        """Load it.

        Args:
            model: Name or file.
            backend: Of `open_backend`.
            threads: CPU threads.
            device: CUDA device.

        Raises:
            ModelError, EngineError, MissingExtraError, InputError: See `open_backend`.
        """
        self.backend = open_backend(model, backend, threads, device=device)
        self.name = find_model(model).stem
        self.precision, self.sha256 = identity(model, self.backend)

    def subject(self, size: tuple[int, int], batch: int = 1) -> Subject:
        """Return what is timed at one size and batch.

        Args:
            size: Height and width of a picture; the model gets the next it takes.
            batch: Pictures in one call.

        Raises:
            EngineError: No engine takes this size.
        """
        m, fixed = self.backend.spec.multiple, frames_of(self.backend)
        h, w = (-(-s // m) * m for s in size)
        if fixed is not None and batch == 1:  # an engine's own size, where it does not take this
            h, w = fitting(h, w, fixed, m) or (h, w)
        labels = Labels(self.backend.name, self.name, self.precision)
        return subject_of(self.backend, (batch, h, w), labels, self.sha256)

    def close(self) -> None:
        """Free it."""
        self.backend.close()


def subject_of(
    backend: Backend,
    shape: Shape,
    labels: Labels,
    sha256: dict[str, str] | None = None,
    make_times: Callable[[], DeviceTimes] = lambda: DeviceTimes(MAX_SAMPLES),
) -> Subject:
    """Prepare a noisy batch with a hole of 6 % and a past, and return what runs it.

    Args:
        backend: A loaded model.
        shape: `(N, H, W)`; H and W multiples of the model's `spec.multiple`.
        labels: For the report.
        sha256: Of the files.
        make_times: Replaced in tests.

    Raises:
        InputError: The model cannot take this shape.
        ModelError: It returns something else than pictures.
    """
    n, height, width = shape
    multiple = backend.spec.multiple
    if min(shape) < 1 or height % multiple or width % multiple:
        raise InputError(f"shape {shape}: height and width must be multiples of {multiple}")
    frame = hash_noise((n, height, width, 3))
    mask = np.zeros((n, height, width, 1), np.uint8)
    mask[:, height // 4 : height // 2, width // 4 : width // 2] = 1
    sigma = np.full(n, SIGMA, np.float32)
    backend.warm_up(shape)
    restored, state = backend.run(frame, mask, np.zeros((n, height, width, 4), np.uint8), sigma)
    expect(restored, frame.shape, labels.backend)
    restored, _ = backend.run(frame, mask, state, sigma)
    if not hasattr(backend, "timed"):
        return Subject(
            "engine",
            labels,
            frame.shape,
            lambda: backend.run(frame, mask, state, sigma),
            n,
            sha256=sha256 or {},
        )
    times, timed = make_times(), cast(Timed, backend).timed
    return Subject(
        "engine", labels, frame.shape, lambda: timed(shape, times), n, times, sha256 or {}
    )


def identity(model: str, backend: Backend) -> tuple[str, dict[str, str]]:
    """Return the precision of the convolutions, and the hashes of model and engines.

    Args:
        model: Name or file.
        backend: That runs it.
    """
    data = find_model(model).read_bytes()
    hashes = {"model": hashlib.sha256(data).hexdigest()}
    for i, record in enumerate(getattr(backend, "records", ())):
        if record is not None:
            hashes[f"engine {i + 1}"] = record.engine_sha256
    if any(word in data for word in _QUANTISED):
        return "int8", hashes
    usual = "fp16" if backend.name == "triton" else "fp32"
    return getattr(backend, "precision", usual) or "unknown", hashes


def hash_noise(shape: tuple[int, ...]) -> U8:
    """Return the same white noise each time: a flat picture could meet shortcuts."""
    index = np.arange(math.prod(shape), dtype=np.uint32)
    return (index * np.uint32(2654435761) >> np.uint32(24)).astype(np.uint8).reshape(shape)
