"""The scores of a protocol run on disk: appended line by line, gone on with after a break.

A score depends on the picture, the damage, the method and the metrics alone. So a folder may grow
by cases and methods; whatever would give another number under the same name is refused.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any

from fastrestore.atomic import label, write_file
from fastrestore.errors import InputError, OutputError
from fastrestore.measure import Line
from fastrestore.protocol import PROTOCOL

SETTINGS, SCORES = "settings.json", "scores.csv"
COLUMNS = [f.name for f in fields(Line)]
_TEXT = ("picture", "case", "method", "variant")


class Ledger:
    """Scores of one folder. One process at a time writes to it.

    Attributes:
        settings: What the scores depend on: `pictures` (name to sha256), `lpips` (sha256 of its
            weights or None), `cases` (slug to what it is), `methods` (name to identity).
        lines: All scores, those of earlier runs first.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Open a folder, or begin it.

        Args:
            folder: Is made if it does not exist.
            settings: As in the attribute.

        Raises:
            InputError: The folder was begun with other settings, or is damaged.
            OutputError: It cannot be written.
        """
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise OutputError(f"{label(folder)}: cannot be made ({e.strerror})") from e
        self.settings = self._merge({"protocol": PROTOCOL, **settings})
        write_file(folder / SETTINGS, (json.dumps(self.settings, indent=1) + "\n").encode())
        self.lines = self._read()
        self._done = {line.key for line in self.lines}
        try:
            self._file = open(folder / SCORES, "a", encoding="utf-8", newline="")  # noqa: SIM115
        except OSError as e:
            raise OutputError(f"{label(folder / SCORES)}: cannot be written ({e.strerror})") from e
        if not self._file.tell():
            self._write(",".join(COLUMNS) + "\n")

    def __enter__(self) -> Ledger:
        """Return the ledger; the file is closed at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Close; what could not be written has been said by `add`."""
        with suppress(OSError):
            self._file.close()

    def has(self, key: tuple[str, str, str, str]) -> bool:
        """Tell whether a line is there."""
        return key in self._done

    def add(self, line: Line) -> None:
        """Append a line; it is on disk when this returns.

        Raises:
            OutputError: It cannot be written.
        """
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(
            ["" if (v := getattr(line, c)) is None else v for c in COLUMNS]
        )
        self._write(text.getvalue())
        self.lines.append(line)
        self._done.add(line.key)

    def _write(self, text: str) -> None:
        try:
            self._file.write(text)
            self._file.flush()
        except OSError as e:
            raise OutputError(
                f"{label(self._folder / SCORES)}: cannot be written ({e.strerror}); what is there "
                "is kept: free some space and run it again"
            ) from e

    def _merge(self, new: dict[str, Any]) -> dict[str, Any]:
        """Add cases and methods to the settings on disk; refuse what contradicts them."""
        path = self._folder / SETTINGS
        try:
            old = json.loads(path.read_text(encoding="utf-8"))
            pairs = [(old[k], new[k]) for k in ("cases", "methods")]
        except FileNotFoundError:
            if (self._folder / SCORES).exists():
                raise InputError(
                    f"{label(self._folder)}: has scores but no {SETTINGS}; use another folder"
                ) from None
            return new
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise InputError(f"{label(path)}: cannot be read; use another folder") from e
        for key in ("protocol", "pictures", "lpips"):
            if old.get(key) != new[key]:
                raise InputError(
                    f"{label(self._folder)}: was begun with other {_WORDS[key]}; "
                    "use another folder, or the same settings"
                )
        for before, now in pairs:
            for name in before.keys() & now.keys():
                if before[name] != now[name]:
                    raise InputError(
                        f"{label(self._folder)}: was begun with another {name!r}; use another "
                        "folder"
                    )
        joined = {k: {**b, **n} for k, (b, n) in zip(("cases", "methods"), pairs, strict=True)}
        return {**new, **joined}

    def _read(self) -> list[Line]:
        """Read the scores; a last line that was cut short is removed from the file."""
        path = self._folder / SCORES
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(path, len(whole))
        rows = list(csv.reader(io.StringIO(whole.decode("utf-8"))))
        if rows and rows[0] != COLUMNS:
            raise InputError(f"{label(path)}: has other columns; use another folder")
        try:
            return [_line(row) for row in rows[1:]]
        except (ValueError, TypeError) as e:
            raise InputError(f"{label(path)}: is damaged ({e}); use another folder") from e


_WORDS = {
    "protocol": "rules of measuring (another version of fastrestore)",
    "pictures": "pictures",
    "lpips": "weights of LPIPS, or none",
}


def _line(row: list[str]) -> Line:
    if len(row) != len(COLUMNS):
        raise ValueError(f"a line has {len(row)} columns")
    values: dict[str, Any] = dict(zip(COLUMNS, row, strict=True))
    for name in COLUMNS[len(_TEXT) :]:
        values[name] = float(values[name]) if values[name] else None
    return Line(**values)
