from __future__ import annotations

import contextlib
import json
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrestore.errors import ModelError
from fastrestore.spec import KEY, SCHEMA, ModelSpec, read_spec

SPEC = ModelSpec(
    name="tiny",
    preset="tiny",
    multiple=16,
    halo=64,
    levels=6,
    track="free",
    licence="Apache-2.0",
    training={"steps": 1000, "data": ["free_photos"]},
    metrics={"kodak24": {"psnr_db": 31.25}},
    code="1.0",
)

# A few awkward letters: drawing from all of Unicode builds its tables first, for seconds.
TEXT = st.text('ab "\\{}\x00\n\u00e9\u4e2d\U0001f600', max_size=12)


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def chunk(number: int, value: bytes) -> bytes:
    """One length-delimited protobuf field."""
    return varint(number << 3 | 2) + varint(len(value)) + value


def prop(key: str, value: str) -> bytes:
    """One `metadata_props` entry of a ModelProto."""
    return chunk(14, chunk(1, key.encode()) + chunk(2, value.encode()))


def model_bytes(*props: bytes) -> bytes:
    """A ModelProto: IR version (a number), producer, a graph that nobody parses, metadata."""
    return b"\x08\x09" + chunk(2, b"test") + chunk(7, b"\x00" * 300) + b"".join(props)


MODEL = model_bytes(prop("author", "someone"), prop(KEY, SPEC.to_json()))


def test_json_round_trip():
    assert ModelSpec.from_json(SPEC.to_json()) == SPEC
    assert list(json.loads(SPEC.to_json())) == sorted(json.loads(SPEC.to_json()))


@given(
    name=TEXT,
    multiple=st.integers(1, 1024),
    halo=st.integers(0, 1024),
    levels=st.integers(1, 12),
    kind=st.sampled_from(["restorer", "detector"]),
    metrics=st.dictionaries(TEXT, st.floats(allow_nan=False, allow_infinity=False)),
)
def test_any_spec_survives_the_file(**values):
    spec = replace(SPEC, **values)
    # A spec that says "location" is refused with the whole file: see read_spec.
    text = spec.to_json()
    if "location" not in text:
        assert read_spec(model_bytes(prop(KEY, text)), "x.onnx") == spec


def test_defaults():
    spec = ModelSpec("a", "nano", 8, 64, 6, "research", "MIT")
    assert (spec.kind, spec.version, spec.schema, spec.code) == ("restorer", 1, SCHEMA, "")
    assert spec.training == spec.metrics == {}
    with pytest.raises(FrozenInstanceError):
        spec.name = "b"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("track", "secret"),
        ("track", ""),
        ("kind", "upscaler"),
        ("schema", SCHEMA + 1),
        ("schema", 0),
        ("multiple", 0),
        ("halo", -1),
        ("levels", 0),
    ],
)
def test_values_out_of_range_are_refused(field: str, value):
    with pytest.raises(ModelError, match="spec"):
        replace(SPEC, **{field: value})
    data = {**json.loads(SPEC.to_json()), field: value}
    with pytest.raises(ModelError, match="spec"):
        ModelSpec.from_json(json.dumps(data))


@pytest.mark.parametrize("field", ["multiple", "halo", "levels"])
def test_text_where_a_number_belongs_is_refused(field: str):
    data = {**json.loads(SPEC.to_json()), field: "16"}
    with pytest.raises(ModelError, match="must be positive integers"):
        ModelSpec.from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["", "{", "[]", "[1]", "5", "null", '"name"', "{}", "\x00"])
def test_text_that_is_no_spec_is_refused(text: str):
    with pytest.raises(ModelError, match="spec"):
        ModelSpec.from_json(text)


def test_unknown_and_missing_fields_are_named():
    data = json.loads(SPEC.to_json())
    with pytest.raises(ModelError, match="colour"):
        ModelSpec.from_json(json.dumps({**data, "colour": 1}))
    del data["licence"]
    with pytest.raises(ModelError, match="licence"):
        ModelSpec.from_json(json.dumps(data))


def test_spec_is_found_among_other_metadata():
    assert read_spec(MODEL, "x.onnx") == SPEC
    assert read_spec(MODEL + prop("later", ""), "x.onnx") == SPEC
    # An entry may leave its value out.
    assert read_spec(MODEL + chunk(14, chunk(1, b"empty")), "x.onnx") == SPEC


def test_onnx_writes_what_is_read():
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [value], [out]))
    onnx.helper.set_model_props(model, {"author": "someone", KEY: SPEC.to_json()})
    assert read_spec(model.SerializeToString(), "x.onnx") == SPEC


def test_model_without_a_spec_is_refused_by_name():
    with pytest.raises(ModelError, match=r"^other\.onnx: no fastrestore spec.*fastrestore export"):
        read_spec(model_bytes(prop("author", "someone")), "other.onnx")


def test_broken_spec_is_refused_by_name():
    with pytest.raises(ModelError, match=r"^other\.onnx: spec: cannot be read"):
        read_spec(model_bytes(prop(KEY, "{")), "other.onnx")


@pytest.mark.parametrize(
    "data",
    [b"PK\x03\x04 a zip file", b"\x89PNG\r\n", b"<html></html>", b"\xff" * 50, b"\x72\x7f"],
)
def test_other_files_are_refused_by_name(data: bytes):
    with pytest.raises(ModelError, match=r"^photo\.png: "):
        read_spec(data, "photo.png")


def test_number_types_that_onnx_has_not_are_refused():
    with pytest.raises(ModelError, match="not an ONNX file"):
        read_spec(b"\x0d\x00", "x.onnx")  # field 1 as a 32-bit number


def test_tensors_outside_the_file_are_refused():
    tensor = chunk(13, chunk(1, b"location") + chunk(2, b"../weights.bin"))
    model = model_bytes(chunk(7, chunk(5, tensor)), prop(KEY, SPEC.to_json()))
    with pytest.raises(ModelError, match="outside the file"):
        read_spec(model, "x.onnx")


def test_every_cut_is_refused():
    for size in range(len(MODEL)):
        with pytest.raises(ModelError):
            read_spec(MODEL[:size], "x.onnx")


@given(st.binary(max_size=40), st.integers(0, 2**40))
def test_bytes_after_the_spec_cannot_crash(tail: bytes, size: int):
    with contextlib.suppress(ModelError):  # readable or refused; any other error fails the test
        assert read_spec(MODEL + b"\x3a" + varint(size) + tail, "x.onnx") == SPEC


def test_metadata_without_a_key_is_refused():
    with pytest.raises(ModelError):
        read_spec(chunk(14, b""), "x.onnx")


def test_deeply_nested_spec_is_refused():
    with pytest.raises(ModelError):
        ModelSpec.from_json("[" * 100_000)
