"""Others that do the same job, timed beside ours at level `host`: OpenCV, scikit-image, ONNX.

Each gets the same picture and returns one: an inpainter the picture and its hole, a denoiser the
noisy picture and its sigma.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from fastrestore import classical
from fastrestore.arrays import U8
from fastrestore.bench.adapter import Adapted, find_adapter
from fastrestore.bench.record import Labels
from fastrestore.bench.scene import SIGMA, Scene
from fastrestore.bench.subject import Subject
from fastrestore.errors import InputError, need

INPAINTERS: dict[str, Callable[[U8, U8], U8]] = {
    "telea": classical.telea,
    "navier-stokes": classical.navier_stokes,
    "biharmonic": classical.biharmonic,
}
DENOISERS: dict[str, Callable[[U8, float], U8]] = {
    "nlm": classical.non_local_means,
    "bilateral": classical.bilateral,
}
NAMES = (*INPAINTERS, *DENOISERS)


class Rivals:
    """All rivals of a run, opened once."""

    def __init__(
        self,
        names: Sequence[str],
        adapters: Sequence[str] = (),
        threads: int | None = None,
        provider: str = "cpu",
    ) -> None:
        """Find and load them.

        Args:
            names: Of `NAMES`, or ONNX files.
            adapters: How the files are called: one for all, or one for each in their order.
            threads: CPU threads, of OpenCV as well; None = as they like.
            provider: `cpu` or `cuda`: where ONNX Runtime runs the files.

        Raises:
            InputError: An unknown name, or files and adapters that do not match.
            ModelError: A file cannot be loaded or is not as its adapter says.
            MissingExtraError: scikit-image or CUDA's provider is not installed.
        """
        files = [name for name in names if name.endswith(".onnx")]
        for name in names:
            if name not in NAMES and name not in files:
                known = ", ".join(NAMES)
                raise InputError(f"rival {name}: not known; choose {known}, or an .onnx file")
        self._methods = [name for name in names if name not in files]
        if "biharmonic" in names:
            need("skimage.restoration", "evaluate")
        chosen = _matched(files, adapters)
        self.files = [Adapted(f, a, threads, provider) for f, a in chosen]
        self._held = ExitStack()
        if threads is not None and self._methods:
            self._held.callback(_set_threads(threads))

    def subjects(self, scene: Scene) -> list[Callable[[], Subject]]:
        """Return what makes those that can do a scene.

        Nothing is called yet: a slow one is called no more often than it is timed.
        """
        image, mask = scene.image, scene.mask
        found: list[Callable[[], Subject]] = []
        for name in self._methods:
            if mask is not None and name in INPAINTERS:
                call: Callable[[], U8] = partial(INPAINTERS[name], image, mask)
            elif mask is None and name in DENOISERS:
                call = partial(DENOISERS[name], image, SIGMA)
            else:
                continue
            library = "scikit-image" if name == "biharmonic" else "opencv"
            labels = Labels(library, name, "", scene.task)
            found.append(partial(Subject, "host", labels, image.shape, call))
        for file in self.files:
            if file.adapter.task == scene.task:
                labels = Labels(file.backend, file.name, "", scene.task)
                found.append(partial(_adapted, file, labels, image, mask))
        return found

    def close(self) -> None:
        """Free the files, and give OpenCV its threads back."""
        self.files.clear()
        self._held.close()


def _adapted(file: Adapted, labels: Labels, image: U8, mask: U8 | None) -> Subject:
    file(image, mask)  # an adapter that is wrong fails here
    call = partial(file, image, mask)
    return Subject("host", labels, image.shape, call, sha256={"model": file.sha256})


def _matched(files: Sequence[str], adapters: Sequence[str]) -> list[tuple[str, Any]]:
    if not files and adapters:
        raise InputError("--adapter: there is no --rival FILE.onnx that it would be for")
    if files and len(adapters) not in (1, len(files)):
        raise InputError(
            f"{files[0]}: give --adapter once for all files or once for each, "
            f"not {len(adapters)} times for {len(files)}"
        )
    names = list(adapters) * len(files) if len(adapters) == 1 else adapters
    return [(f, find_adapter(a)) for f, a in zip(files, names, strict=False)]


def _set_threads(threads: int) -> Callable[[], None]:
    import cv2

    before = cv2.getNumThreads()
    cv2.setNumThreads(threads)
    return lambda: cv2.setNumThreads(before)
