"""The proof that an exported graph does what the torch generator does. Nothing is written without.

Checked: the ONNX checker; the rules that TensorRT's parser needs (`_check_rules`); ONNX Runtime
against torch on random pictures (a restorer's with masks, histories and noise); inlined against
with functions.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import onnx
import torch
from onnx import ModelProto, TensorProto
from torch import Tensor

from fastrestore.arrays import F32, U8
from fastrestore.errors import ModelError
from fastrestore.export.functions import DOMAIN, OPSET, PLUGIN_ATTRIBUTES
from fastrestore.export.graph import IR_VERSION
from fastrestore.export.precision import inline
from fastrestore.kernels.fusion import fuse
from fastrestore.spec import KEY, ModelSpec
from fastrestore.train.detection import pack_frame
from fastrestore.train.generator import Generator

MAX_LEVELS = 1
MAX_SHARE = 1e-3
SEED = 0
# Batch, height, width in multiples of the spec's; odd ones leave a remainder at every level.
SIZES = ((1, 1, 1), (1, 1, 81), (3, 5, 3), (2, 7, 5), (1, 13, 11), (2, 3, 7))
PER_FRAME = 4  # batches of `random_inputs` with the same frame


@dataclass(frozen=True, slots=True)
class Parity:
    """What `verify` found; it raises when a figure is not good enough.

    Attributes:
        cases: Input batches that were compared.
        values: uint8 values that were compared.
        levels: Largest difference between ONNX Runtime and torch, in grey levels.
        share: Share of the values that differ at all, 0 to 1.
        nodes: Nodes of the inlined graph.
    """

    cases: int
    values: int
    levels: int
    share: float
    nodes: int


@dataclass(frozen=True, slots=True)
class Inputs:
    """One batch as the graph takes it; the arrays' shapes are those of `Backend.run`."""

    frame: U8
    mask: U8
    state: U8
    sigma: F32


def verify(model: ModelProto, generator: Generator) -> Parity:
    """Check an exported FP32 graph against its generator.

    Args:
        model: As `build` returns it, with functions and a spec in the metadata.
        generator: The one it was made from, fused or not; not changed.

    Raises:
        ModelError: A check failed; the line says which, with its figure.
    """
    _check_onnx(model)
    flat = inline(model)
    _check_onnx(flat)
    _check_rules(model, flat)
    reference = copy.deepcopy(generator).float().cpu().eval()
    run, run_inlined = _runner(model), _runner(flat)
    spec = _spec(model)
    batches = random_inputs(spec.multiple, np.random.default_rng(SEED))
    torch_form: Callable[[Generator, Inputs], Sequence[U8]] = run_torch
    if spec.kind == "detector":  # each frame comes once, not with every mask and history
        batches, torch_form = islice(batches, None, None, PER_FRAME), detect_torch
    cases = values = off = levels = 0
    for inputs in batches:
        if len(model.graph.output) == 1:  # a stills graph
            inputs = dataclasses.replace(inputs, state=np.zeros_like(inputs.state))
        got = run(inputs)
        if not all(map(np.array_equal, got, run_inlined(inputs))):
            raise ModelError("model: inlined and with functions give different pictures")
        for ours, theirs in zip(got, torch_form(reference, inputs), strict=False):
            difference = np.abs(ours.astype(np.int16) - theirs)
            levels = max(levels, int(difference.max()))
            values, off = values + difference.size, off + int(np.count_nonzero(difference))
        cases += 1
    parity = Parity(cases, values, levels, off / values, len(flat.graph.node))
    if parity.levels > MAX_LEVELS or parity.share > MAX_SHARE:
        raise ModelError(
            f"model: ONNX Runtime is up to {levels} levels off torch on {parity.share:.3%} of the "
            f"values, {MAX_LEVELS} on {MAX_SHARE:.1%} is allowed; is it this generator's?"
        )
    return parity


def random_inputs(multiple: int, rng: np.random.Generator) -> Iterator[Inputs]:
    """Yield batches of every kind: masks from none to all, histories none, foreign and near.

    Args:
        multiple: Sides are odd multiples of this many px.
        rng: Source of all of it.
    """
    for i, (n, rows, columns) in enumerate(SIZES):
        h, w = rows * multiple, columns * multiple
        frame = rng.integers(0, 256, (n, h, w, 3), np.uint8)
        if i % 2:  # pictures are smooth: noise alone would hide the pyramid
            frame = frame // 8 + np.linspace(0, 220, w).astype(np.uint8)[:, None]
        blocks = rng.random((n, h // 4, w // 4, 1)) < rng.random((n, 1, 1, 1))
        mask = blocks.repeat(4, 1).repeat(4, 2) * rng.integers(1, 256, (n, h, w, 1), np.uint8)
        near = np.clip(frame + rng.normal(0, 6, frame.shape), 0, 255).astype(np.uint8)
        states = (
            np.zeros((n, h, w, 4), np.uint8),
            rng.integers(0, 256, (n, h, w, 4), np.uint8),
            np.concatenate([near, rng.integers(128, 240, (n, h, w, 1), np.uint8)], 3),
        )
        sigma = (rng.uniform(0, 75, n) * (rng.random(n) > 0.2)).astype(np.float32)
        for state in states:
            yield Inputs(frame, mask, state, sigma)
        lone = np.full_like(mask, 255)
        lone[:, h // 2, w // 2] = 0
        extremes = (np.zeros_like(mask), np.full_like(mask, 1), lone)
        yield Inputs(frame, extremes[(i + 1) % 3], states[i // 3], sigma)


@torch.no_grad()
def run_torch(generator: Generator, inputs: Inputs) -> tuple[U8, U8]:
    """Run the torch form of the whole graph; return restored and the next state."""
    frame, mask, state = (_to_nchw(a) for a in (inputs.frame, inputs.mask, inputs.state))
    sigma = torch.from_numpy(inputs.sigma).view(-1, 1, 1, 1)
    fused = fuse(frame, mask.clamp(max=1), state, sigma)
    return _to_u8(generator.restore(fused.packed) * 255), _to_u8(fused.state)


@torch.no_grad()
def detect_torch(generator: Generator, inputs: Inputs) -> tuple[U8]:
    """Run the torch form of a detector's graph; return damage, `(N, H, W, 1)`, in 255ths."""
    logits = generator(pack_frame(_to_nchw(inputs.frame)))
    return (_to_u8(logits.sigmoid() * 255),)


def _to_nchw(x: U8) -> Tensor:
    return torch.from_numpy(x).permute(0, 3, 1, 2).float()


def _to_u8(levels: Tensor) -> U8:
    array: U8 = levels.round().clamp(0, 255).permute(0, 2, 3, 1).byte().numpy()
    return array


def _runner(model: ModelProto) -> Callable[[Inputs], Sequence[U8]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    # Bytes, never a path: a path may bring tensors from outside the file.
    data = model.SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [i.name for i in model.graph.input]

    def run(inputs: Inputs) -> Sequence[U8]:
        got: Sequence[U8] = session.run(None, {name: getattr(inputs, name) for name in names})
        return got

    return run


def _check_onnx(model: ModelProto) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as e:
        raise ModelError(f"model: onnx.checker refuses it: {str(e).splitlines()[0]}") from e


def _spec(model: ModelProto) -> ModelSpec:
    for prop in model.metadata_props:
        if prop.key == KEY:
            return ModelSpec.from_json(prop.value)
    raise ModelError("model: no fastrestore spec in the metadata")


def _check_rules(model: ModelProto, flat: ModelProto) -> None:
    """Check what TensorRT's parser gets wrong without a message, or refuses later."""
    opset = {o.domain: o.version for o in model.opset_import}.get("")
    if (opset, model.ir_version) != (OPSET, IR_VERSION):
        raise ModelError(
            f"model: opset {opset}, IR {model.ir_version}; must be {OPSET}, {IR_VERSION}"
        )
    for broken in (*_broken_functions(model), *_broken_calls(model)):
        raise ModelError(f"model: {broken}")
    for form in (model, flat):
        for name in _uint8_outside_cast(form):
            raise ModelError(f"model: uint8 value {name} meets a node other than Cast")
    for tensor in model.graph.initializer:
        if not np.isfinite(onnx.numpy_helper.to_array(tensor)).all():
            raise ModelError(f"model: weights {tensor.name} are not finite; train again")


def _broken_functions(model: ModelProto) -> Iterator[str]:
    for f in model.functions:
        if onnx.defs.has(f.name):
            yield f"function {f.name} has the name of an ONNX operator"
        names = [*f.input, *f.output, *(v for n in f.node for v in (n.name, *n.input, *n.output))]
        for name in names:
            if name and not name.startswith(f"{f.name}/"):
                yield f"{name} in function {f.name} lacks the prefix {f.name}/"
        for node in f.node:
            if any(a.ref_attr_name for a in node.attribute):
                yield f"attribute reference in {node.name}"
            if any(a.name == "to" and a.i == TensorProto.UINT8 for a in node.attribute):
                yield f"cast to uint8 in {node.name}"


def _broken_calls(model: ModelProto) -> Iterator[str]:
    for node in model.graph.node:
        missing = set(PLUGIN_ATTRIBUTES) - {a.name for a in node.attribute}
        if node.domain == DOMAIN and missing:
            yield f"call {node.name} lacks {', '.join(sorted(missing))}"


def _uint8_outside_cast(model: ModelProto) -> Iterator[str]:
    """Yield the uint8 values that are not made and read by Cast alone."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    known = [*graph.input, *graph.output, *graph.value_info]
    uint8 = {v.name for v in known if v.type.tensor_type.elem_type == TensorProto.UINT8}
    for node in graph.node:
        if node.op_type != "Cast":
            yield from sorted(uint8.intersection((*node.input, *node.output)))
