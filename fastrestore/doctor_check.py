"""One finding of the doctor, and what becomes of a check that breaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from fastrestore.errors import FastRestoreError

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """One finding; `mend` says what to do and is empty when nothing needs doing."""

    name: str
    status: Status
    detail: str
    mend: str = ""


def guarded(name: str, step: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """Pass on a step's findings; a step that breaks is a finding, not the end of the doctor."""
    try:
        yield from step()
    except Exception as e:  # a broken library can raise anything, and to say so is the task
        yield broken(name, e, "reinstall fastrestore and what it needs")


def broken(name: str, e: Exception, mend: str) -> Check:
    """Return the finding that something raised, in one line."""
    text = str(e).strip().split("\n")[0]
    detail = text if isinstance(e, FastRestoreError) else f"{type(e).__name__}: {text}"
    return Check(name, "fail", detail, mend)
