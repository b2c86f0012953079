"""The Restorer: pictures and frames in, restored ones out, with any backend."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np

from fastrestore.arrays import F32, U8, check_image
from fastrestore.backend import find_model, frames_of, open_backend
from fastrestore.coarse import around, solve, wide_holes
from fastrestore.errors import InputError
from fastrestore.masks import as_mask, feather, grow
from fastrestore.motion import carry, carry_within, doubt
from fastrestore.noise import estimate_sigma
from fastrestore.spec import ModelSpec
from fastrestore.tiles import LIMIT_PX, Region, plan, within
from fastrestore.windows import fitting, plan_windows

Sigma = float | Literal["auto"] | None
CPU_BACKENDS = ("ort", "openvino")
SEEN_ONCE = 128  # confidence n / (n + 1) of n = 1 frame, in 255ths


class Restorer:
    """Restores pictures, and videos frame by frame, with one loaded model.

    Not thread-safe: it keeps the state of the current video.

    Attributes:
        sigma: Noise that the last call removed, 0-255 scale: given or estimated.
        motion: Whether the past of a video is moved with its content; see `motion`.
    """

    def __init__(
        self,
        model: str | Path = "tiny",
        *,
        backend: str = "auto",
        threads: int | None = None,
        device: int = 0,
        engine: str | Path | None = None,
        trust_engine: bool = False,
        limit_px: int = LIMIT_PX,
        motion: bool | None = None,
    ) -> None:
        """Load a model.

        Args:
            model: A shipped model's name (`tiny`, `nano`) or the path of an ONNX file.
            backend: `auto`, `ort`, `openvino`, `tensorrt`, `rtx` or `triton`.
            threads: CPU threads; None = as many as the process may use.
            device: CUDA device, among those that CUDA_VISIBLE_DEVICES leaves.
            engine: An engine file, instead of those in the cache.
            trust_engine: Accept an engine that comes from elsewhere.
            limit_px: Largest picture run in one piece; larger ones go in tiles. An engine's frames
                decide where one runs.
            motion: Move the past of a video to where its content lies in the new frame; that runs
                on the CPU. None: where the network runs there too, beside which it is cheap.

        Raises:
            ModelError, EngineError, MissingExtraError, InputError: See `open_backend`.
        """
        self._backend = open_backend(
            model, backend, threads, device=device, engine=engine, trust_engine=trust_engine
        )
        self._model = model
        self._frames = frames_of(self._backend)
        self._limit_px = limit_px
        self._state: U8 | None = None
        self.motion = self._backend.name in CPU_BACKENDS if motion is None else motion
        self.sigma = 0.0

    @property
    def spec(self) -> ModelSpec:
        """What the model says about itself."""
        return self._backend.spec

    @property
    def backend(self) -> str:
        """Name of the backend that runs."""
        return self._backend.name

    @property
    def identity(self) -> dict[str, str]:
        """What its results depend on: model, backend and engines, hashed."""
        data = find_model(self._model).read_bytes()
        engines = [r.engine_sha256 for r in getattr(self._backend, "records", ()) if r is not None]
        return {
            "model": f"sha256:{hashlib.sha256(data).hexdigest()}",
            "backend": self.backend,
            "engine": f"sha256:{' '.join(engines)}" if engines else "none",
            "motion": "on" if self.motion else "off",
        }

    def __enter__(self) -> Restorer:
        """Return the Restorer; `close` is called at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Free the model."""
        self._backend.close()

    def reset(self) -> None:
        """Forget the past: call it after a seek or a gap in a video."""
        self._state = None

    @property
    def past(self) -> U8 | None:
        """State before the next frame, uint8 `(H, W, 4)`; None = no history. All that is kept."""
        return self._state

    @past.setter
    def past(self, state: U8 | None) -> None:
        self._state = state

    def __call__(
        self, image: U8, mask: U8 | None = None, *, sigma: Sigma = None, grow_px: int = 0
    ) -> U8:
        """Restore one picture.

        Args:
            image: uint8 RGB, `(H, W, 3)`.
            mask: uint8 or bool, `(H, W)`; nonzero = hole. None: there is no hole.
            sigma: Noise to remove, on the 0-255 scale; 0 = known pixels stay, bit for bit;
                "auto" = estimate it. None = 0 with a mask, "auto" without one.
            grow_px: Widen the hole by this much against halos, and blend there (at sigma 0).

        Returns:
            uint8 RGB, `(H, W, 3)`. At sigma 0 pixels outside the grown mask are the input's own.

        Raises:
            InputError: Wrong shape or dtype, sigma out of range, or a mask that leaves nothing.
        """
        hole, grown, noise = self._check(image, mask, sigma, grow_px)
        self.sigma = noise
        restored = self._restore(image, grown, noise)
        return _composite(image, restored, hole, grown, noise)

    def video(
        self, frames: Iterable[U8], mask: U8 | None = None, *, sigma: Sigma = None, grow_px: int = 0
    ) -> Iterator[U8]:
        """Restore frames in order; the past of the video is used, and kept for the next call.

        Args:
            frames: uint8 RGB, `(H, W, 3)`, all of one size; another size forgets the past.
            mask: Constant hole of the video, as in a single picture.
            sigma: As for one picture; "auto" estimates it anew in every frame.
            grow_px: As for one picture.
        """
        for frame in frames:
            yield self.frame(frame, mask, sigma=sigma, grow_px=grow_px)

    def frame(
        self, image: U8, mask: U8 | None = None, *, sigma: Sigma = None, grow_px: int = 0
    ) -> U8:
        """Restore the next frame of a video; see `video`."""
        hole, grown, noise = self._check(image, mask, sigma, grow_px)
        self.sigma = noise
        if self._state is not None and self._state.shape[:2] != image.shape[:2]:
            self._state = None
        # What the graph itself would remember of known pixels without noise: the frame, seen once.
        known = np.full(image.shape[:2], SEEN_ONCE, np.uint8)
        after = np.dstack((image, known if grown is None else known * (1 - grown)))
        past = self._carried(image, grown, noise)
        restored = self._restore(image, grown, noise, past, after)
        if self.motion and past is not None and noise == 0:
            doubt(after, past, grown)
        self._state = after
        return _composite(image, restored, hole, grown, noise)

    def _carried(self, image: U8, mask: U8 | None, sigma: float) -> U8 | None:
        """Return the state where its content lies in this frame; where it is not run, it stays."""
        if self._state is None or not self.motion:
            return self._state
        if sigma > 0:
            return carry(self._state, image, mask, sigma)
        if mask is None:
            return self._state
        regions = self._plan(image, mask, sigma)
        seen = (rect for rect, _ in groupby(r.seen for r in regions))  # several may see the same
        return carry_within(self._state, image, mask, seen)

    def _check(
        self, image: U8, mask: U8 | None, sigma: Sigma, grow_px: int
    ) -> tuple[U8 | None, U8 | None, float]:
        """Return the hole, the grown hole (None = no hole) and the noise to remove."""
        check_image(image)
        number = not isinstance(sigma, str) and sigma is not None and 0 <= sigma < 255
        if not (sigma is None or sigma == "auto" or number):
            raise InputError(f"sigma must be 'auto' or from 0 to 254, got {sigma}")
        hole = None if mask is None else as_mask(mask, image.shape[:2])
        grown = None if hole is None else grow(hole, grow_px)
        if grown is not None and grown.all():
            raise InputError("the mask covers the whole picture: nothing is left to restore from")
        if sigma == "auto" or (sigma is None and mask is None):
            return hole, grown, estimate_sigma(image, grown)
        return hole, grown, float(sigma or 0)

    def _plan(self, image: U8, mask: U8 | None, sigma: float) -> list[Region]:
        size = image.shape[:2]
        holes = [] if mask is None else self._regions(size, mask)
        if sigma == 0:
            return holes
        everywhere = self._regions(size, None)
        # Tiles cut holes: those are run once more, whole.
        return everywhere if len(everywhere) == 1 else everywhere + holes

    def _regions(self, size: tuple[int, ...], mask: U8 | None) -> list[Region]:
        h, w = size
        if self._frames is None:
            return plan(h, w, mask, self.spec, self._limit_px)
        return plan_windows(h, w, mask, self.spec, self._frames)

    def _restore(
        self,
        image: U8,
        mask: U8 | None,
        sigma: float,
        past: U8 | None = None,
        after: U8 | None = None,
    ) -> U8:
        """Run every region that must change; the rest stays as it is.

        Args:
            image: uint8 RGB, `(H, W, 3)`.
            mask: uint8, `(H, W)`, 1 = hole, or None.
            sigma: Noise to remove.
            past: State before this frame, `(H, W, 4)`; None = no history.
            after: Takes the state after it; None for a still.
        """
        h, w = image.shape[:2]
        hole = np.zeros((h, w), np.uint8) if mask is None else mask
        before = np.zeros((h, w, 4), np.uint8) if past is None else past
        # What the past knows of a hole is worth more than a guess from far away.
        unseen = hole if past is None else hole & (past[..., 3] == 0)
        wide = wide_holes(unseen, self.spec.halo)
        narrow = mask if wide is None else hole & (1 - wide)
        restored = image.copy()
        for r, out, new in self._run(image, hole, before, sigma, self._plan(image, narrow, sigma)):
            restored[r.kept] = out
            if after is not None:
                after[r.kept] = new
        if wide is not None:
            window = around(wide)
            filled = solve(restored[window], wide[window], self._run_scale)
            np.copyto(restored[window], filled, where=wide[window][..., None] > 0)
        return restored

    def _run_scale(self, image: U8, mask: U8, state: U8) -> U8:
        """Fill holes on one scale, free of noise; see `coarse.Run`."""
        filled = image.copy()
        for r, out, _ in self._run(image, mask, state, 0.0, self._regions(mask.shape, mask)):
            filled[r.kept] = out
        return filled

    def _run(
        self, image: U8, mask: U8, state: U8, sigma: float, regions: list[Region]
    ) -> Iterator[tuple[Region, U8, U8]]:
        """Run regions; yield each with what it keeps of picture and state."""
        for (y, x), same in groupby(regions, key=lambda r: r.seen):  # several may see the same
            group = list(same)
            border = group[0].border
            out, new = self._run_padded(image[y, x], mask[y, x], state[y, x], sigma, border)
            for r in group:
                inner = within(r.kept, r.seen)
                yield r, out[inner], new[inner]

    def _run_padded(
        self, image: U8, mask: U8, state: U8, sigma: float, border: tuple[int, int]
    ) -> tuple[U8, U8]:
        """Repeat the edges up to what the model takes, run, and cut them off again."""
        h, w = mask.shape
        top, left = border
        m, size = self.spec.multiple, (h + top, w + left)
        fixed = None if self._frames is None else fitting(*size, self._frames, m)
        rows, cols = fixed or (n + -n % m for n in size)
        pad = ((top, rows - h - top), (left, cols - w - left), (0, 0))
        frame, hole, past = (
            np.ascontiguousarray(np.pad(a, pad, mode="edge")[None])
            for a in (image, mask[..., None], state)
        )
        noise: F32 = np.full(1, sigma, np.float32)
        restored, after = self._backend.run(frame, hole, past, noise)
        inside = (0, slice(top, top + h), slice(left, left + w))
        return restored[inside], after[inside]


def _composite(image: U8, restored: U8, hole: U8 | None, grown: U8 | None, sigma: float) -> U8:
    """Take the restored pixels where they are wanted."""
    if sigma > 0 or hole is None or grown is None:
        return restored
    if hole is grown or np.array_equal(hole, grown):
        return np.where(grown[..., None] > 0, restored, image)
    weight = feather(hole, grown)[..., None]
    mixed = np.rint(image + weight * (restored.astype(np.float32) - image))
    return np.where(weight > 0, mixed, image).astype(np.uint8)
