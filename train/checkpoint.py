"""One safetensors file per checkpoint: tensors, and a JSON record in its header. No pickle."""

from __future__ import annotations

import json
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fastrestore.errors import InputError, OutputError

NAME = "checkpoint.safetensors"


def save(folder: Path, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Write a checkpoint so that a crash leaves either the old one or the new one.

    Args:
        folder: Run folder, made if absent.
        tensors: Everything that is a tensor, by name.
        record: JSON values: config, step, history.

    Raises:
        OutputError: The folder cannot be written or the disk is full.
    """
    part = folder / f".{NAME}.{secrets.token_hex(4)}.part"  # two runs must not share it
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # safetensors refuses other layouts
        flat = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        save_file(flat, part, metadata={"fastrestore": json.dumps(record)})
        with part.open("rb") as f:
            os.fsync(f.fileno())  # or a power cut could leave an empty file of the right name
        os.replace(part, folder / NAME)
    except (OSError, SafetensorError) as e:
        raise OutputError(f"{folder / NAME}: cannot be written ({e}); free some space") from e
    finally:  # an interrupt, too, leaves nothing
        with suppress(OSError):
            part.unlink()


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint of `save`.

    Raises:
        InputError: No checkpoint there, or the file is damaged or of another program.
    """
    path = folder / NAME if folder.is_dir() else folder
    try:
        with safe_open(str(path), framework="pt") as f:
            record = json.loads((f.metadata() or {})["fastrestore"])
            if not isinstance(record, dict):
                raise ValueError("its record is no JSON object")
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118  not a mapping
    except FileNotFoundError as e:
        raise InputError(f"{path}: no checkpoint there") from e
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError) as e:
        raise InputError(f"{path}: not a fastrestore checkpoint ({e})") from e
    return tensors, record


def part_of(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors named `prefix.*`, without the prefix."""
    return {k[len(prefix) + 1 :]: v for k, v in tensors.items() if k.startswith(f"{prefix}.")}
