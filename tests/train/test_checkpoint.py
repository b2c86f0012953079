"""Checkpoints: whole or not at all, and nothing in a foreign file is ever executed."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from fastrestore.errors import InputError, OutputError
from fastrestore.train import checkpoint

TENSORS = {
    "net.a": torch.arange(24.0).view(1, 2, 3, 4),
    "net.b.c": torch.tensor(3.5),
    "rng": torch.arange(7, dtype=torch.uint8),
}
RECORD = {"step": 12, "rng": {"state": 2**127 + 1, "name": "PCG64"}, "history": [{"a": 0.1}]}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a
    )


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_round_trip(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a b [1] 100%"
    checkpoint.save(folder, TENSORS, RECORD)
    tensors, record = checkpoint.load(folder)
    assert same(tensors, TENSORS)
    assert record == RECORD
    assert os.listdir(folder) == [checkpoint.NAME]
    assert checkpoint.load(folder / checkpoint.NAME)[1] == RECORD  # the file itself will do


def test_layout_and_gradients_do_not_matter(tmp_path: Path) -> None:
    wide = torch.randn(4, 8, 3, 3).to(memory_format=torch.channels_last).requires_grad_()
    checkpoint.save(tmp_path, {"wide": wide, "view": wide[:2, 1:]}, {})
    tensors, _ = checkpoint.load(tmp_path)
    assert same(tensors, {"wide": wide.detach(), "view": wide.detach()[:2, 1:]})


def test_part_of_takes_whole_names() -> None:
    names = {"net.a": torch.zeros(1), "net.b.c": torch.ones(1), "network.a": torch.ones(2)}
    assert list(checkpoint.part_of(names, "net")) == ["a", "b.c"]
    assert checkpoint.part_of(names, "ema") == {}


@pytest.mark.parametrize(
    ("module", "name", "error"),
    [
        (os, "replace", OSError(28, "No space left on device")),
        (checkpoint, "save_file", SafetensorError("I/O error: No space left on device")),
        (checkpoint, "save_file", OSError(30, "Read-only file system")),
    ],
    ids=["replace", "full", "read-only"],
)
def test_failed_write_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, error: Exception
) -> None:
    checkpoint.save(tmp_path, TENSORS, RECORD)
    before = (tmp_path / checkpoint.NAME).read_bytes()

    def fail(_: Any, path: Path, **__: Any) -> None:
        if name == "save_file":
            path.write_bytes(b"half")  # what a full disk leaves
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(module, name, fail)
        with pytest.raises(OutputError) as e:
            checkpoint.save(tmp_path, {"net.a": torch.zeros(1)}, {"step": 13})
    assert str(tmp_path / checkpoint.NAME) in str(e.value)
    assert "\n" not in str(e.value)
    assert os.listdir(tmp_path) == [checkpoint.NAME]
    assert (tmp_path / checkpoint.NAME).read_bytes() == before


@pytest.mark.parametrize("below", [".", "deeper"])
def test_folder_that_is_a_file_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "run").write_text("notes")
    with pytest.raises(OutputError, match="run"):
        checkpoint.save(tmp_path / "run" / below, TENSORS, RECORD)
    assert (tmp_path / "run").read_text() == "notes"


def foreign_file(kind: str, path: Path, trap: Path) -> None:
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"net": Evil(trap)}))
    elif kind == "torch.save":
        torch.save({"net": Evil(trap)}, path)
    elif kind == "text":
        path.write_text("weights come later\n" * 30)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "folder":
        path.mkdir()
    elif kind == "huge header":
        path.write_bytes((2**62).to_bytes(8, "little") + b"{}" * 40)
    elif kind == "no record":
        save_file(TENSORS, path)
    else:
        record = {
            "record not JSON": "step 12",
            "record a list": "[]",
            "record too deep": "[" * 100_000,
        }[kind]
        save_file(TENSORS, path, metadata={"fastrestore": record})


@pytest.mark.parametrize(
    "kind",
    [
        "pickle",
        "torch.save",
        "text",
        "empty",
        "folder",
        "huge header",
        "no record",
        "record not JSON",
        "record a list",
        "record too deep",
    ],
)
def test_foreign_file_is_refused_and_never_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path, trap = tmp_path / checkpoint.NAME, tmp_path / "trap"
    foreign_file(kind, path, trap)

    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("a pickle was opened")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(InputError) as e:
        checkpoint.load(tmp_path)
    assert str(e.value).startswith(f"{path}: not a fastrestore checkpoint")
    assert "\n" not in str(e.value)
    assert not trap.exists()


def test_truncated_file_is_refused_at_every_length(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, TENSORS, RECORD)
    path = tmp_path / checkpoint.NAME
    whole = path.read_bytes()
    for size in (*range(0, len(whole), 23), len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match="not a fastrestore checkpoint"):
            checkpoint.load(tmp_path)


def test_missing_checkpoint_is_said(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent", tmp_path / "absent.safetensors"):
        with pytest.raises(InputError, match="no checkpoint there"):
            checkpoint.load(path)


def test_file_is_plain_safetensors(tmp_path: Path) -> None:
    """Header length, JSON header, tensors: readable without this package."""
    checkpoint.save(tmp_path, TENSORS, RECORD)
    data = (tmp_path / checkpoint.NAME).read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert json.loads(header["__metadata__"]["fastrestore"]) == RECORD
    assert header["net.a"]["shape"] == [1, 2, 3, 4]
