"""The graph of one model in the precision that an engine is to have, made in memory."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import onnx
from onnx import ModelProto

from fastrestore.arrays import U8
from fastrestore.atomic import label
from fastrestore.backend import find_model, read_model
from fastrestore.engine_record import ModelRecord, Precision
from fastrestore.errors import InputError, ModelError
from fastrestore.export.overflow import check_fp16, has_no_numbers, saturated_inputs
from fastrestore.export.precision import to_bf16, to_fp16
from fastrestore.export.quantize import (
    calibration_inputs,
    is_for_engines,
    is_quantized,
    quantize,
    read_record,
)

CALIBRATION_MOST = 64  # pictures: 16 were as good as 48
CALIBRATION_LEAST = 8
CROPS = 48
CHECKED = 4  # damaged samples, beside the saturated inputs
CHECK_PX = 64  # the peaks are those of 128 px within a tenth, in a third of the time
SEED = 10
INT8_SUFFIX = ".int8.onnx"
CPU_SUFFIX = "-u8"  # of the form for CPUs
_log = logging.getLogger(__name__)


class Int8File(NamedTuple):
    """The INT8 form that ships: its graph, and the SHA-256 of its file."""

    model: ModelProto
    sha256: str


class Source:
    """A model file and the forms that are made from it, each once."""

    def __init__(self, model: str | Path, calibration: Path | None = None) -> None:
        """Read the file.

        Args:
            model: A shipped model's name, or the path of an ONNX file with a spec.
            calibration: Folder of pictures for INT8; None = the INT8 file beside the model.

        Raises:
            ModelError: The model is absent, foreign, damaged, a detector or quantised for CPUs, or
                a weight is no number.
            InputError: The folder has too few pictures, or the model is INT8 already.
        """
        self.path = find_model(model)
        self.data, self.spec = read_model(self.path, "restorer")
        try:
            self.model = onnx.load_model_from_string(self.data)
            is_broken = has_no_numbers(self.model)
        except Exception as e:  # protobuf's DecodeError shares no base with others but Exception
            raise ModelError(f"{label(self.path)}: is damaged; export it again") from e
        if is_broken:
            raise ModelError(f"{label(self.path)}: has values that are no numbers; export it again")
        self.is_int8 = is_quantized(self.model)
        if self.is_int8 and not is_for_engines(self.model):
            raise ModelError(f"{label(self.path)}: is made for CPUs; build from {_origin(model)}")
        if self.is_int8 and calibration is not None:
            raise InputError(
                f"{label(self.path)}: is INT8 already; leave --calibration out, or give the FP32 "
                "file"
            )
        self.calibration = None if calibration is None else label(calibration.absolute())
        self._pictures = None if calibration is None else read_pictures(calibration)

    @cached_property
    def record(self) -> ModelRecord:
        """What the sidecar says of the file, whatever the form."""
        digest = hashlib.sha256(self.data).hexdigest()
        s = self.spec
        return ModelRecord(s.name, s.version, digest, s.track, s.licence)

    @cached_property
    def no_int8(self) -> str:
        """Why no INT8 form can be made, one line; empty if one can."""
        if self.is_int8 or self._pictures is not None:
            return ""
        if not self._int8_path.is_file():
            return "there is no INT8 file and no --calibration"
        try:
            _ = self._beside
        except ModelError as e:
            return str(e)
        return ""

    @property
    def _int8_path(self) -> Path:
        return self.path.with_name(self.path.stem + INT8_SUFFIX)

    def check_precision(self, precision: Precision | Literal["auto"]) -> None:
        """Refuse what no form can be, before anything is built.

        Raises:
            InputError: No INT8 form, or the file is INT8 and another precision is asked for.
            ModelError: The INT8 file is of another model.
        """
        if self.is_int8 and precision not in ("int8", "auto"):
            raise InputError(
                f"{label(self.path)}: is INT8 already; give --precision int8, or the FP32 file"
            )
        if precision == "int8" and not self.is_int8 and self._pictures is None:
            _ = self._int8

    @cached_property
    def int8_sha256(self) -> str:
        """SHA-256 of the INT8 form: of the file beside the model, or of what calibration made.

        Raises:
            InputError: See `form`.
            ModelError: See `form`.
        """
        if self._pictures is None and not self.is_int8:
            _ = self._int8  # says what is wrong with the file
            return self._beside.sha256
        return hashlib.sha256(self._int8.SerializeToString(deterministic=True)).hexdigest()

    def form(self, precision: Precision) -> ModelProto:
        """Return the graph in one precision, with functions or without.

        Raises:
            InputError: No INT8 form, or the file is INT8 and another precision is asked for.
            ModelError: FP16 cannot hold what happens inside, the line names the layer; or the
                INT8 file is of another model.
        """
        self.check_precision(precision)
        if precision == "fp32":
            return self.model
        if precision == "bf16":
            return to_bf16(self.model)
        if precision == "fp16":
            self.check_half()
            return to_fp16(self.model)
        if not self.is_int8:
            self.check_half()
        return to_fp16(self._int8)  # what is not INT8 runs in FP16

    def check_half(self) -> None:
        """Make sure that FP16 can hold every inner value.

        Raises:
            ModelError: It cannot; the line names the layer.
        """
        _ = self._checked

    @cached_property
    def _checked(self) -> bool:
        pictures = self._pictures or shipped_samples()
        some = list(calibration_inputs(pictures, CHECKED, SEED, model=self.model))
        check_fp16(self.model, [*some, *saturated_inputs(CHECK_PX)])
        return True

    @cached_property
    def _int8(self) -> ModelProto:
        if self.is_int8:
            return self.model
        if self._pictures is None:
            if not self._int8_path.is_file():
                raise InputError(
                    f"{label(self.path)}: has no {label(self._int8_path.name)} beside it; add "
                    f"--calibration DIR with {CALIBRATION_LEAST} or more pictures, or use fp16"
                )
            return self._beside.model
        inputs = calibration_inputs(self._pictures, CROPS, SEED, model=self.model)
        return quantize(self.model, inputs, keep=self._keep())

    def _keep(self) -> Sequence[str]:
        """Return the layers that cannot stand INT8: that does not hang on the pictures."""
        if not self._int8_path.is_file():
            return ()
        try:
            record = read_record(self._beside.model)
        except ModelError as e:  # of other weights, whose weak layers say nothing of these
            _log.warning("%s: every layer that may be is INT8", str(e).partition(";")[0])
            return ()
        return record.keep if record is not None else ()

    @cached_property
    def _beside(self) -> Int8File:
        """The INT8 file beside the model, read once: what is built is what the digest is of.

        Raises:
            ModelError: It cannot be read, or was not made from this very model.
        """
        data, spec = read_model(self._int8_path, "restorer")
        if (spec.name, spec.version, spec.preset) != (
            self.spec.name,
            self.spec.version,
            self.spec.preset,
        ):
            raise ModelError(
                f"{label(self._int8_path)}: is {spec.name} version {spec.version}, the model is "
                f"{self.spec.name} version {self.spec.version}; add --calibration DIR"
            )
        self._refuse_other_weights(data)
        model = onnx.load_model_from_string(data)
        if not is_for_engines(model):
            raise ModelError(f"{label(self._int8_path)}: is not INT8; add --calibration DIR")
        return Int8File(model, hashlib.sha256(data).hexdigest())

    def _refuse_other_weights(self, data: bytes) -> None:
        """Compare what the report beside the INT8 file says with the files: names may agree."""
        report = self._int8_path.with_suffix(".json")
        try:
            said = json.loads(report.read_bytes()) if report.is_file() else None
        except (OSError, ValueError, RecursionError):
            said = None
        if not isinstance(said, dict) or "fp32_sha256" not in said:
            raise ModelError(
                f"{label(report)}: does not say of which weights the INT8 file is; add "
                "--calibration DIR"
            )
        own = hashlib.sha256(data).hexdigest()
        if said["fp32_sha256"] != self.record.sha256 or said.get("int8_sha256", own) != own:
            raise ModelError(
                f"{label(self._int8_path)}: was made from other weights than "
                f"{label(self.path.name)}; add --calibration DIR"
            )


def _origin(model: str | Path) -> str:
    """Return what a form for CPUs was made from, in the user's way to name it."""
    name, end = str(model).removesuffix(".onnx"), ".onnx" if str(model).endswith(".onnx") else ""
    return (
        label(name.removesuffix(CPU_SUFFIX) + end) if name.endswith(CPU_SUFFIX) else "its FP32 file"
    )


def read_pictures(folder: Path) -> list[U8]:
    """Read up to `CALIBRATION_MOST` pictures of a folder, by name.

    Raises:
        InputError: No such folder, or too few pictures.
    """
    from fastrestore.images import is_picture, read_picture

    try:
        paths = sorted(p for p in folder.iterdir() if is_picture(p))
    except OSError as e:
        raise InputError(f"{label(folder)}: cannot be read ({e.strerror}); name a folder") from e
    if len(paths) < CALIBRATION_LEAST:
        raise InputError(
            f"{label(folder)}: has {len(paths)} pictures, calibration needs {CALIBRATION_LEAST} "
            "or more; add some"
        )
    return [read_picture(p).rgb for p in paths[:CALIBRATION_MOST]]


def shipped_samples() -> list[U8]:
    """Return the package's own pictures.

    Raises:
        ModelError: They are missing.
    """
    from fastrestore.demo import sample_folder
    from fastrestore.images import read_picture

    paths = sorted(sample_folder().glob("*.webp"))
    if not paths:
        raise ModelError("samples: the package's pictures are missing; install it again")
    return [read_picture(p).rgb for p in paths]


def is_overflow(e: ModelError) -> bool:
    """Tell whether a form failed because FP16 cannot hold the model."""
    return "FP16 ends at" in str(e)
