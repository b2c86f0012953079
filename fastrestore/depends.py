"""What the result of a clip depends on beside its frames, in values that two runs can compare."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from fastrestore.detect import Detector
from fastrestore.environment import package_version
from fastrestore.journal import Value, fingerprint
from fastrestore.restore import Restorer

if TYPE_CHECKING:
    from fastrestore.batch import Options

# What runs the model, finds masks and moves the past.
_PACKAGES = (
    "numpy",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "opencv-python-headless",
    "opencv-python",
)
# Options of other inputs, of the file alone, or of the encoder, which is compared as it is chosen.
_FREE = frozenset(
    {"quality", "max_pixels", "overwrite", "resume", "segment_s", "again"}
    | {"encoder", "crf", "preset"}
)


def depends_on(options: Options, restorer: Restorer, detector: Detector | None) -> dict[str, Value]:
    """Return model, versions and options, name to value.

    Raises:
        InputError: The mask cannot be read.
    """
    found: dict[str, Value] = {**restorer.identity}
    if detector is not None:
        found["detector"] = f"sha256:{detector.sha256}"
    for name in _PACKAGES:
        if (version := package_version(name)) is not None:
            found[name] = version
    for option in fields(options):
        if option.name in _FREE:
            continue
        value = getattr(options, option.name)
        if option.name == "mask" and value not in (None, "alpha", "auto"):
            value = fingerprint(Path(value))
        is_plain = value is None or isinstance(value, str | int | float)
        found[option.name.replace("_", " ")] = value if is_plain else str(value)
    return found
