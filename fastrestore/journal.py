"""What a long job has done so far, on disk: written whole after every segment, or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastrestore.atomic import label, sync, write_file
from fastrestore.errors import InputError
from fastrestore.video_io import Tally
from fastrestore.video_seek import Position

FORMAT = 2
NAME, LOCK = "journal.json", "lock"
PART, JOINED = "part", "joined"  # files that are not whole
_OURS = re.compile(rf"\d{{5,}}\.(nut|pts\.npy|past\.npz|{PART}\.nut)|{JOINED}\.\w+|\.\w+\.part")
_SAMPLE_BYTES = 1 << 20  # of the head and of the tail of a file; all of it would take minutes
_DIGEST = "sha256:"

Value = str | int | float | bool | None
Past = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Result:
    """The joined file, as it is before it gets its name.

    Attributes:
        size: Bytes.
        mtime_ns: Time of its last change.
        notes: What the user should know.
    """

    size: int
    mtime_ns: int
    notes: list[str]


@dataclass(frozen=True, slots=True)
class Journal:
    """How far one job is.

    Attributes:
        work: What the result depends on, name to value.
        overwrite: An existing target may be replaced.
        sizes: Bytes of each finished segment.
        digests: SHA-256 of every file that is needed, by name.
        frames: Frames in all of them.
        place: Where the next segment begins; None = at the beginning, or all has been read.
        end: Where the clip ends, in the reader's ticks; None = not all has been read.
        damaged: Damaged packets, once all has been read.
        notes: What the reader has to say, likewise.
        result: The joined file, once there is one.
    """

    work: dict[str, Value]
    overwrite: bool
    sizes: tuple[int, ...] = ()
    digests: dict[str, str] = field(default_factory=dict)
    frames: int = 0
    place: Position | None = None
    end: int | None = None
    damaged: int = 0
    notes: tuple[str, ...] = ()
    result: Result | None = None

    def to_json(self) -> str:
        """Return the text that is kept."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Journal:
        """Parse it; raises ValueError, TypeError or KeyError."""
        data = json.loads(text)
        if data.pop("format") != FORMAT:
            raise ValueError("written by another version")
        if (place := data["place"]) is not None:
            data["place"] = Position(**{**place, "tally": Tally(**place["tally"])})
        if data["result"] is not None:
            data["result"] = Result(**data["result"])
        data |= {name: tuple(data[name]) for name in ("sizes", "notes")}
        return cls(**data)


class WorkFolder:
    """The folder of one job: its journal, its segments, and what the next one depends on.

    Attributes:
        path: Of the folder.
        journal: As on disk.
    """

    def __init__(self, target: Path) -> None:
        """Name it; nothing is made or read.

        Args:
            target: Of the job.
        """
        self.path = target.with_name(f".{target.name}.parts")
        self.journal = Journal({}, overwrite=False)

    def segment(self, number: int) -> Path:
        """Return the path of a segment's packets."""
        return self.path / f"{number:05}.nut"

    def growing(self, number: int) -> Path:
        """Return the path of a segment that is not whole."""
        return self.path / f"{number:05}.{PART}.nut"

    def joined(self, suffix: str) -> Path:
        """Return the path of the result while it is made."""
        return self.path / f"{JOINED}{suffix}"

    def stamps(self, number: int) -> Path:
        """Return the path of a segment's time stamps."""
        return self.path / f"{number:05}.pts.npy"

    def past(self, number: int) -> Path:
        """Return the path of what comes behind a segment depends on."""
        return self.path / f"{number:05}.past.npz"

    def load(self) -> Journal | None:
        """Read the journal; None if there is none.

        Raises:
            InputError: It is damaged.
        """
        try:
            return Journal.from_json((self.path / NAME).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as e:
            raise InputError(
                f"{label(self.path / NAME)}: cannot be read ({e}); begin anew with --overwrite"
            ) from e

    def save(self, journal: Journal) -> None:
        """Write the journal, so that it is on disk before anything that it replaces goes.

        Raises:
            OutputError: It cannot be written.
        """
        write_file(self.path / NAME, journal.to_json().encode())
        sync(self.path)
        self.journal = journal

    def save_arrays(self, number: int, stamps: npt.NDArray[np.int64], past: Past) -> None:
        """Write what belongs to a segment beside its packets; raises OutputError."""
        data, named = io.BytesIO(), io.BytesIO()
        np.save(data, stamps)
        write_file(self.stamps(number), data.getvalue())
        arrays: dict[str, Any] = dict(past)
        np.savez(named, **arrays)
        write_file(self.past(number), named.getvalue())

    def digests(self, number: int) -> dict[str, str]:
        """Return what the journal keeps of the files that are needed up to a segment's end."""
        gone = self.past(number - 1).name
        kept = {name: d for name, d in self.journal.digests.items() if name != gone}
        new = (self.segment(number), self.stamps(number), self.past(number))
        return kept | {path.name: _file_digest(path) for path in new}

    def load_past(self, number: int) -> Past:
        """Read what comes behind a segment depends on; raises InputError."""
        try:
            with np.load(self.past(number), allow_pickle=False) as found:
                return dict(found)
        except (OSError, ValueError) as e:
            raise _damaged(self.past(number), e) from e

    def load_stamps(self, number: int) -> npt.NDArray[np.int64]:
        """Read a segment's time stamps, in the order of its packets; raises InputError."""
        try:
            stamps: npt.NDArray[np.int64] = np.load(self.stamps(number), allow_pickle=False)
            return stamps
        except (OSError, ValueError) as e:
            raise _damaged(self.stamps(number), e) from e

    def check(self) -> None:
        """Refuse a folder that has lost or changed something; raises InputError."""
        for i, size in enumerate(self.journal.sizes):
            path = self.segment(i)
            found = path.stat().st_size if path.is_file() else 0
            if found != size:
                raise _damaged(path, f"{found} bytes instead of {size}")
        for name, digest in self.journal.digests.items():
            path = self.path / name
            try:
                is_same = _file_digest(path) == digest
            except OSError as e:
                raise _damaged(path, e.strerror) from e
            if not is_same:
                raise _damaged(path, "its bytes are not those that were written")

    def clear(self, everything: bool = False) -> None:
        """Remove what the journal does not speak of, or everything, the journal first.

        What is not of our making stays, and the lock.
        """
        kept: set[str] = set()
        if everything:
            (self.path / NAME).unlink(missing_ok=True)
        else:
            last = len(self.journal.sizes) - 1
            kept = {f(i).name for i in range(last + 1) for f in (self.segment, self.stamps)}
            kept.add(self.past(last).name)
        for path in self.path.iterdir():
            if path.name not in kept and _OURS.fullmatch(path.name):
                path.unlink()


def is_begun(target: Path) -> bool:
    """Tell whether there is a work folder for a target."""
    return os.path.isdir(WorkFolder(target).path)  # a name may be too long to ask for


def _damaged(path: Path, why: object) -> InputError:
    return InputError(f"{label(path)}: is damaged ({why}); begin anew with --overwrite")


def fingerprint(path: Path) -> str:
    """Tell a file or a folder from others: sizes, times, and samples of a file's bytes.

    Raises:
        InputError: It cannot be read.
    """
    try:
        if path.is_dir():
            found = (p for p in path.rglob("*") if p.is_file())
            files = sorted((str(p.relative_to(path)), *_size_and_time(p)) for p in found)
            return _DIGEST + hashlib.sha256(json.dumps(files).encode()).hexdigest()
        size, changed = _size_and_time(path)
        with open(path, "rb") as file:
            head = file.read(_SAMPLE_BYTES)
            file.seek(max(size - _SAMPLE_BYTES, 0))
            tail = file.read(_SAMPLE_BYTES)
    except OSError as e:
        raise InputError(f"{label(path)}: cannot be read ({e.strerror}); put it back") from e
    return f"{size} bytes, {changed}, {_DIGEST}{hashlib.sha256(head + tail).hexdigest()}"


def _file_digest(path: Path) -> str:
    """Return the SHA-256 of all of a file; raises OSError."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(_SAMPLE_BYTES):
            found.update(data)
    return found.hexdigest()


def _size_and_time(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def differences(old: Mapping[str, Value], new: Mapping[str, Value]) -> list[str]:
    """Say in words what is not the same: `another input`, `crf 20 (now 17)`."""
    told = []
    for name in sorted(old.keys() | new.keys()):
        a, b = old.get(name), new.get(name)
        if a != b:
            plain = not any(_DIGEST in str(v) for v in (a, b))
            told.append(f"{name} {_word(a)} (now {_word(b)})" if plain else f"another {name}")
    return told


def _word(value: Value) -> str:
    return "none" if value is None else str(value)
