"""ModelSpec: what a model file says about itself, kept in the ONNX metadata and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from fastrestore.errors import ModelError

KEY = "fastrestore.spec"
SCHEMA = 1
Kind = Literal["restorer", "detector"]
Track = Literal["free", "research"]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The contract of one model file.

    Attributes:
        name: What `--model` calls it, for example `tiny`.
        preset: Generator size, a key of `fastrestore.presets.PRESETS`.
        multiple: Height and width that the graph accepts are multiples of this, in px.
        halo: Pixels of surroundings a crop needs to agree with the whole picture.
        levels: Levels of the fill pyramid; crops start at multiples of `2 ** levels`.
        track: `free` (shipped) or `research` (trained on non-commercial pictures).
        licence: SPDX name or a sentence on who may use the weights.
        training: Data, steps, crops, hours, machine: written by the training loop.
        metrics: Figures on held-out pictures, by test name.
        code: Version of fastrestore that exported the file.
        kind: `restorer` (frame, mask, state, sigma) or `detector` (frame to damage).
        version: Version of the weights, counted by hand.
        schema: Version of this record.
    """

    name: str
    preset: str
    multiple: int
    halo: int
    levels: int
    track: Track
    licence: str
    training: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    code: str = ""
    kind: Kind = "restorer"
    version: int = 1
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        """Refuse values that no later code could work with."""
        if self.track not in get_args(Track):
            raise ModelError(f"spec: track must be one of {get_args(Track)}, got {self.track!r}")
        if self.kind not in get_args(Kind):
            raise ModelError(f"spec: kind must be one of {get_args(Kind)}, got {self.kind!r}")
        if self.schema != SCHEMA:
            raise ModelError(f"spec: schema {self.schema}, this version reads {SCHEMA}")
        texts = (self.name, self.preset, self.licence, self.code)
        numbers = (self.halo, self.multiple, self.levels, self.version)
        if not all(isinstance(t, str) for t in texts):
            raise ModelError("spec: name, preset, licence and code must be text")
        if not all(type(n) is int for n in numbers) or min(numbers) < 0 or 0 in numbers[1:]:
            raise ModelError("spec: halo, multiple, levels and version must be positive integers")
        if not (isinstance(self.training, Mapping) and isinstance(self.metrics, Mapping)):
            raise ModelError("spec: training and metrics must be objects")

    def to_json(self) -> str:
        """Return the JSON text that goes into the metadata.

        `read_spec` refuses any file that holds the bare word by which ONNX names outside data.
        """
        return json.dumps(asdict(self), sort_keys=True).replace("location", r"l\u006fcation")

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """Parse the metadata's text.

        Raises:
            ModelError: Not JSON, a field is missing or unknown, or a value is out of range.
        """
        try:
            data = json.loads(text)
            unknown = set(data) - {f.name for f in fields(cls)}
            if unknown:
                raise ModelError(f"spec: unknown fields {sorted(unknown)}")
            return cls(**data)
        except (ValueError, TypeError, RecursionError) as e:
            raise ModelError(f"spec: cannot be read ({e})") from e


def read_spec(model: bytes, name: str) -> ModelSpec:
    """Read the spec of an ONNX file without loading a runtime.

    Args:
        model: The file's bytes.
        name: The file's name, for messages.

    Raises:
        ModelError: Not an ONNX file, tensors stored outside it, or no spec inside.
    """
    if b"location" in model:  # the key of an external tensor is contiguous in the file
        raise ModelError(f"{name}: refers to data outside the file; export it as one file")
    try:
        found = dict(_metadata(model))
    except (IndexError, KeyError, ValueError) as e:
        raise ModelError(f"{name}: not an ONNX file; make one with `fastrestore export`") from e
    if KEY not in found:
        raise ModelError(f"{name}: no fastrestore spec inside; make it with `fastrestore export`")
    try:
        return ModelSpec.from_json(found[KEY])
    except ModelError as e:
        raise ModelError(f"{name}: {e}") from e


def _metadata(model: bytes) -> Iterator[tuple[str, str]]:
    """Yield `metadata_props` of a serialised ModelProto (onnx.proto: field 14, key 1, value 2)."""
    for number, value in _fields(memoryview(model)):
        if number == 14:
            pair = {n: bytes(v).decode() for n, v in _fields(value)}
            yield pair[1], pair.get(2, "")


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield (field number, bytes) of the length-delimited fields of one protobuf message."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        if tag & 7 == 0:
            _, at = _varint(data, at)
        elif tag & 7 == 2:
            size, at = _varint(data, at)
            if at + size > len(data):
                raise ValueError("cut short")
            yield tag >> 3, data[at : at + size]
            at += size
        else:
            raise ValueError(f"wire type {tag & 7}")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for i in range(10):  # 64 bits fit in ten bytes of seven
        byte = data[at + i]
        value |= (byte & 127) << 7 * i
        if byte < 128:
            return value, at + i + 1
    raise ValueError("number too long")
