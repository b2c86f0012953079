"""Restore damaged pictures and video; the core needs no torch."""

from fastrestore._version import __version__
from fastrestore.errors import (
    FastRestoreError,
    InputError,
    MissingExtraError,
    ModelError,
    OutputError,
)
from fastrestore.restore import Restorer

__all__ = [
    "FastRestoreError",
    "InputError",
    "MissingExtraError",
    "ModelError",
    "OutputError",
    "Restorer",
    "__version__",
]
