"""Runs somebody else's ONNX file as it wants to be run: an adapter describes its inputs and output.

A picture comes as uint8 and leaves as uint8; resizing, conversion and the composite are part of
what is timed, for a user pays for them as well. A file of a fixed size gets the picture resized.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from fastrestore.arrays import U8
from fastrestore.atomic import label
from fastrestore.bench.scene import Task
from fastrestore.errors import InputError, MissingExtraError, ModelError

Layout = Literal["NCHW", "NHWC"]
PARTS = ("image", "mask")
_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
_FREE = (0, 0)


@dataclass(frozen=True, slots=True)
class Adapter:
    """How a file is called. Its types are read from the file.

    Attributes:
        inputs: Name of each input to what it holds: `image`, `mask`, or channels of both joined,
            as `mask+image`. Without a mask anywhere the file is a denoiser.
        output: Name of the result; "" = the first.
        layout: Of all of them.
        image_range: What 0 and 255 become.
        mask_values: What known pixels and holes are in the mask.
        hole_value: What the image holds in the hole, in its own range; None = what was there.
        output_range: What becomes 0 and 255.
        size: Height and width, where the file takes no other and does not say so; (0, 0) = any.
        multiple: Of height and width, where the file takes any size.
        name: In messages.
    """

    inputs: Mapping[str, str]
    output: str = ""
    layout: Layout = "NCHW"
    image_range: tuple[float, float] = (0.0, 1.0)
    mask_values: tuple[float, float] = (0.0, 1.0)
    hole_value: float | None = None
    output_range: tuple[float, float] = (0.0, 1.0)
    size: tuple[int, int] = _FREE
    multiple: int = 8
    name: str = ""

    @property
    def task(self) -> Task:
        """What the file does."""
        masked = any("mask" in part.split("+") for part in self.inputs.values())
        return "fill" if masked else "denoise"


ADAPTERS = {
    # LaMa as exported for ONNX Runtime: 512x512 alone, the result in 0 to 255
    "lama": Adapter(
        {"image": "image", "mask": "mask"}, output_range=(0.0, 255.0), size=(512, 512), name="lama"
    ),
    # MI-GAN's published exports: bytes, and a mask that is white where the picture is known
    "migan": Adapter(
        {"image": "image", "mask": "mask"},
        image_range=(0.0, 255.0),
        mask_values=(255.0, 0.0),
        output_range=(0.0, 255.0),
        name="migan",
    ),
}


def find_adapter(text: str) -> Adapter:
    """Return an adapter by its name, or from a JSON file with the fields of `Adapter`.

    Raises:
        InputError: Neither, or a field that is wrong.
    """
    if text in ADAPTERS:
        return ADAPTERS[text]
    known = f"choose {', '.join(ADAPTERS)} or a JSON file"
    try:
        found = json.loads(Path(text).read_text(encoding="utf-8"))
    except OSError as e:
        raise InputError(f"adapter {label(text)}: {e.strerror}; {known}") from e
    except ValueError as e:
        raise InputError(f"{label(text)}: is not JSON ({e}); mend it, or {known}") from e
    return _checked(found, label(text))


def _checked(found: Any, name: str) -> Adapter:
    kinds: dict[str, Callable[[Any], bool]] = {
        "inputs": lambda v: isinstance(v, dict) and bool(v) and all(_parts(p) for p in v.values()),
        "output": lambda v: isinstance(v, str),
        "layout": lambda v: v in get_args(Layout),
        "image_range": _is_pair,
        "mask_values": _is_pair,
        "hole_value": lambda v: v is None or _is_number(v),
        "output_range": _is_pair,
        "size": lambda v: _is_pair(v) and all(type(n) is int and n >= 0 for n in v),
        "multiple": lambda v: type(v) is int and v > 0,
    }
    if not isinstance(found, dict) or "inputs" not in found:
        raise InputError(f"{name}: must be an object with `inputs`; see `fastrestore bench --help`")
    for key, value in found.items():
        if key not in kinds:
            raise InputError(f"{name}: {key}: not known; choose from {', '.join(kinds)}")
        if not kinds[key](value):
            said = next(f.type for f in fields(Adapter) if f.name == key)
            raise InputError(f"{name}: {key}: {json.dumps(value)} is not of the kind {said}")
    pairs: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}
    adapter = Adapter(**pairs, name=Path(name).stem)
    if adapter.output_range[0] == adapter.output_range[1]:
        raise InputError(f"{name}: output_range: its ends are equal; give what is black and white")
    if not any("image" in p.split("+") for p in adapter.inputs.values()):
        raise InputError(f"{name}: inputs: none holds the image; name one")
    return adapter


def _parts(text: Any) -> bool:
    return isinstance(text, str) and all(p in PARTS for p in text.split("+"))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))


class Adapted:
    """A file and its adapter, loaded."""

    def __init__(
        self, path: str, adapter: Adapter, threads: int | None = None, provider: str = "cpu"
    ) -> None:
        """Load the file.

        Args:
            path: An ONNX file that needs no other file.
            adapter: How it is called.
            threads: CPU threads.
            provider: `cpu` or `cuda`.

        Raises:
            InputError: It cannot be read.
            ModelError: ONNX Runtime refuses it, or it is not as the adapter says.
            MissingExtraError: This ONNX Runtime has no CUDA.
        """
        self.adapter, self.name = adapter, Path(path).stem
        self._file = label(path)
        try:
            data = Path(path).read_bytes()
        except OSError as e:
            raise InputError(f"{self._file}: cannot be read ({e.strerror})") from e
        self.sha256 = hashlib.sha256(data).hexdigest()
        self.backend = "ort" if provider == "cpu" else "ort-cuda"
        self._session: Any = _open(data, self._file, threads, provider)
        self._inputs = {i.name: i for i in self._session.get_inputs()}
        self._output = adapter.output or self._session.get_outputs()[0].name
        outputs = [o.name for o in self._session.get_outputs()]
        if set(adapter.inputs) != set(self._inputs) or self._output not in outputs:
            raise ModelError(
                f"{self._file}: has inputs {', '.join(self._inputs)} and outputs "
                f"{', '.join(outputs)}, adapter {adapter.name} says {', '.join(adapter.inputs)} "
                f"and {self._output}; write one as JSON"
            )
        for given in self._inputs.values():
            if given.type not in _DTYPES:
                raise ModelError(f"{self._file}: {given.name} is {given.type}; that is not known")
        self._size = self._fixed()

    def __call__(self, image: U8, mask: U8 | None) -> U8:
        """Restore one picture, from bytes to bytes.

        Args:
            image: uint8 RGB `(H, W, 3)`.
            mask: uint8 `(H, W)`, 1 = hole; None for a denoiser.

        Raises:
            ModelError: The file fails, or returns something else than a picture.
        """
        given, hole = self._sized(image, mask)
        values = self._values(given, hole)
        feeds = {n: self._joined(n, part, values) for n, part in self.adapter.inputs.items()}
        try:
            out = self._session.run([self._output], feeds)[0]
        except Exception as e:  # ONNX Runtime's exceptions share no base but Exception
            reason = (str(e).splitlines() or [""])[0][:200]
            raise ModelError(
                f"{self._file}: does not run as adapter {self.adapter.name} says ({reason})"
            ) from e
        restored = self._picture(out, given.shape, image.shape)
        return restored if mask is None else np.where(mask[..., None] > 0, restored, image)

    def _fixed(self) -> tuple[int, int] | None:
        """Return the only height and width that the file takes, None if it takes any."""
        at = (2, 3) if self.adapter.layout == "NCHW" else (1, 2)
        for given in self._inputs.values():
            if len(given.shape) != 4:
                raise ModelError(f"{self._file}: {given.name} has {len(given.shape)} axes, not 4")
            h, w = (given.shape[i] for i in at)
            if isinstance(h, int) and isinstance(w, int):
                return h, w
        return None if self.adapter.size == _FREE else self.adapter.size

    def _sized(self, image: U8, mask: U8 | None) -> tuple[U8, U8 | None]:
        """Return picture and hole as large as the file takes them."""
        import cv2

        h, w = image.shape[:2]
        if self._size is None:
            m = self.adapter.multiple
            pad = ((0, -h % m), (0, -w % m))
            if pad == ((0, 0), (0, 0)):
                return image, mask
            hole = None if mask is None else np.pad(mask, pad)
            return np.pad(image, (*pad, (0, 0)), mode="edge"), hole
        if self._size == (h, w):
            return image, mask
        rows, cols = self._size
        how = cv2.INTER_AREA if rows * cols < h * w else cv2.INTER_LINEAR
        given = np.asarray(cv2.resize(image, (cols, rows), interpolation=how), np.uint8)
        if mask is None:
            return given, None
        smaller = cv2.resize(mask, (cols, rows), interpolation=cv2.INTER_NEAREST)
        return given, np.asarray(smaller, np.uint8)

    def _values(self, image: U8, mask: U8 | None) -> dict[str, npt.NDArray[Any]]:
        """Return what each part is in the file's own numbers, `(H, W, channels)`."""
        a = self.adapter
        low, high = a.image_range
        if (low, high) == (0.0, 255.0):
            picture: npt.NDArray[Any] = image
        else:
            picture = image * np.float32((high - low) / 255) + np.float32(low)
        if mask is None:
            return {"image": picture}
        known, hole = a.mask_values
        is_hole = mask[..., None] > 0
        if a.hole_value is not None:
            picture = np.where(is_hole, np.asarray(a.hole_value, picture.dtype), picture)
        return {"image": picture, "mask": np.where(is_hole, np.float32(hole), np.float32(known))}

    def _joined(
        self, name: str, parts: str, values: Mapping[str, npt.NDArray[Any]]
    ) -> npt.NDArray[Any]:
        """Return one input of the file."""
        dtype = _DTYPES[self._inputs[name].type]
        found = [values[part].astype(dtype, copy=False) for part in parts.split("+")]
        joined = found[0] if len(found) == 1 else np.concatenate(found, axis=2)
        if self.adapter.layout == "NCHW":
            joined = joined.transpose(2, 0, 1)
        return np.ascontiguousarray(joined[None])

    def _picture(self, out: npt.NDArray[Any], seen: tuple[int, ...], wanted: tuple[int, ...]) -> U8:
        """Return the file's result as bytes, of the size of the picture."""
        import cv2

        if out.ndim == 4:
            out = out[0].transpose(1, 2, 0) if self.adapter.layout == "NCHW" else out[0]
        if out.shape != seen:
            raise ModelError(
                f"{self._file}: {self._output} is {out.shape}, not a picture of {seen}; "
                "mend the adapter's layout or output"
            )
        if out.dtype != np.uint8:
            low, high = self.adapter.output_range
            out = np.rint((out.astype(np.float32) - low) * np.float32(255 / (high - low)))
            out = np.clip(out, 0, 255).astype(np.uint8)
        h, w = wanted[:2]
        if self._size is None:
            return out[:h, :w]
        if seen == wanted:
            return out
        how = cv2.INTER_AREA if h * w < seen[0] * seen[1] else cv2.INTER_LINEAR
        whole = np.ascontiguousarray(out)
        return np.asarray(cv2.resize(whole, (w, h), interpolation=how), np.uint8)


def _open(data: bytes, name: str, threads: int | None, provider: str) -> Any:
    """Open a session, on the CPU as our own backend does."""
    from fastrestore.backends.ort import open_session

    if provider == "cpu":
        return open_session(data, name, threads)
    import onnxruntime as ort

    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise MissingExtraError(
            f"{name}: this ONNX Runtime has no CUDA: pip install onnxruntime-gpu in place of "
            "onnxruntime, or --rival-provider cpu"
        )
    try:
        session = ort.InferenceSession(data, providers=["CUDAExecutionProvider"])
    except Exception as e:  # ONNX Runtime's exceptions share no base but Exception
        reason = (str(e).splitlines() or [""])[0][:200]
        raise ModelError(f"{name}: ONNX Runtime cannot load it ({reason})") from e
    if session.get_providers()[0] != "CUDAExecutionProvider":  # it goes on without, in silence
        raise ModelError(f"{name}: ONNX Runtime does not run it on CUDA; --rival-provider cpu")
    return session
