"""What `-o` may replace: an engine of ours and its sidecar, sound or damaged, and nothing else."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from fastrestore.atomic import label
from fastrestore.engine_file import (
    MAGIC,
    MAX_SIDECAR_BYTES,
    backup,
    read_record,
    refuse_hands,
    sidecar,
)
from fastrestore.engine_fit import cache_holds
from fastrestore.engine_record import EngineRecord
from fastrestore.errors import EngineError, OutputError

_MOST_BYTES = 240  # of a name; `.NAME.build` and `NAME.json` must not pass 255
_START = b'{\n "product": "tensorrt'  # of every sidecar
_FIELDS = (b'"product_version"', b'"engine_sha256"', b'"compute_capabilities"')


def refuse_output(output: Path, model: Path, is_rebuild: bool) -> None:
    """Refuse to replace anything but an engine of ours; a damaged one only if that is asked for.

    Args:
        output: Where the engine is to be; its sidecar and the copy of an old one go beside it.
        model: What it is built from.
        is_rebuild: Whether to replace an engine whose sidecar tells nothing.

    Raises:
        OutputError: One of these files is there and is no part of an engine, or is damaged.
    """
    if output.suffix == ".json":
        raise OutputError(
            f"{label(output)}: would be taken for a sidecar; name the engine, not its .json"
        )
    if len(os.fsencode(output.name)) > _MOST_BYTES:
        raise OutputError(f"{label(output)}: the name is too long; choose a shorter one")
    record, problem = None, ""
    try:
        record = read_record(output)
    except EngineError as e:  # absent, damaged or not ours
        problem = str(e).partition("; ")[0]
        if os.path.lexists(sidecar(output)):
            why = problem.removeprefix(f"{label(sidecar(output))}: ")
            problem = f"{label(output)}: its sidecar is damaged ({why})"
    is_there = False
    for path in (output, sidecar(output), backup(output)):
        try:
            if not os.path.lexists(path):
                continue
            is_there = True
            is_model = path.exists() and path.samefile(model)
            is_ours = _is_sidecar(path) if path == sidecar(output) else _is_engine(path, record)
        except OSError as e:
            raise OutputError(
                f"{label(path)}: cannot be read ({e.strerror}); choose another -o"
            ) from e
        if is_model or not is_ours:
            reason = "is the model itself" if is_model else "exists and is no engine"
            raise OutputError(f"{label(path)}: {reason}; choose another -o")
    if is_there and record is None and not is_rebuild:
        raise OutputError(f"{problem}; add --rebuild to replace it, or choose another -o")


def refuse_folder(folder: Path, say: Callable[[str], None]) -> None:
    """Refuse a folder that cannot be written before minutes are spent; warn of one in other hands.

    Raises:
        OutputError: It cannot.
    """
    if not os.access(folder, os.W_OK | os.X_OK):
        other = "set FASTRESTORE_CACHE to another" if cache_holds(folder) else "choose another -o"
        raise OutputError(f"{label(folder)}: cannot be written; {other}")
    try:
        refuse_hands(folder, folder.stat())
    except EngineError as e:
        say(f"{e} when it is run")


def _is_engine(path: Path, record: EngineRecord | None) -> bool:
    """Tell whether a file is an engine, whole or cut short: by its first bytes.

    Args:
        path: The file, or the copy of an old one.
        record: Its sidecar, which knows one whose first bytes were damaged by its size.
    """
    info = path.lstat()
    if not stat.S_ISREG(info.st_mode):
        return False  # a device or a pipe is not even opened
    if info.st_size == 0 or (record is not None and info.st_size == record.engine_bytes):
        return True  # of an empty one nothing is lost
    with open(path, "rb") as file:
        return file.read(4) in MAGIC


def _is_sidecar(path: Path) -> bool:
    """Tell whether a file is a sidecar, or was one before it was damaged."""
    info = path.lstat()
    if not stat.S_ISREG(info.st_mode) or info.st_size > MAX_SIDECAR_BYTES:
        return False
    text = path.read_bytes()
    return (
        not text.strip(b"\0")
        or _START.startswith(text[: len(_START)])
        or any(f in text for f in _FIELDS)
    )
