"""Every error the package raises on purpose. One line each: what, which, mend.

The command line prints the text alone and exits with the class's `exit_code`:
3 bad input, 4 no usable backend, extra or model, 5 output or disk. (0 ok, 1 some of several
inputs failed, 2 usage and 130 interrupted are the command line's own.) A traceback is a bug.
"""

from __future__ import annotations

import importlib
from types import ModuleType


class FastRestoreError(Exception):
    """Base of all deliberate errors."""

    exit_code = 3


class InputError(FastRestoreError, ValueError):
    """An argument or a file that the caller gave cannot be used."""


class ModelError(FastRestoreError):
    """A model file is absent, foreign or does not do what its spec says."""

    exit_code = 4


class EngineError(FastRestoreError):
    """An engine is absent, does not belong here or cannot be built."""

    exit_code = 4


class EncoderError(FastRestoreError):
    """A video encoder is absent or does not work on this machine."""

    exit_code = 4


class MissingExtraError(FastRestoreError, ImportError):
    """An optional dependency is needed and absent."""

    exit_code = 4


class OutputError(FastRestoreError, OSError):
    """A result cannot be written."""

    exit_code = 5

    def __str__(self) -> str:
        """Return the message alone: OSError would print its arguments."""
        return str(self.args[0]) if self.args else ""


def need(module: str, extra: str) -> ModuleType:
    """Import an optional dependency, or say which extra brings it.

    Args:
        module: Dotted name, for example `"torch"`.
        extra: The extra in pyproject.toml that installs it.

    Raises:
        MissingExtraError: The module cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as e:
        missing = e.name or module
        raise MissingExtraError(
            f"{missing} is not installed: pip install 'fastrestore[{extra}]'"
        ) from e
