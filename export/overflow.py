"""How large every value of a graph becomes, and which layer FP16 cannot hold.

An engine of TensorRT saturates or turns to NaN deep inside and shows a black frame once in
thousands; the output alone proves nothing. So the FP32 graph runs on pictures and on the worst
that can come in, with every inner value as an output.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, ValueInfoProto, numpy_helper

from fastrestore.arrays import U8
from fastrestore.errors import ModelError
from fastrestore.export.precision import inline, layer_of, network_nodes

FP16_MOST = 65504.0
MARGIN = 4  # a network value above a quarter of the limit is worth a warning
PART = 64  # values per run: at 128x128 less than 60 MB at once
SIDE_PX = 128
SIGMA_MOST = 254.0
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)

Feeds = Mapping[str, npt.NDArray[Any]]
_log = logging.getLogger(__name__)


class Peak(NamedTuple):
    """The largest absolute value that one node gave.

    `layer` is the node in the generator's words: `encoder.1.0.conv3`, or the value of the main
    graph that it helps to make and its operator: `encoder.1.0 (Add)`. `value` is its output's name
    in the inlined graph, `largest` is infinite where a value was not finite. `in_network` is
    whether it lies between the first and the last layer with weights; all else is bounded by
    construction.
    """

    layer: str
    value: str
    largest: float
    in_network: bool


def has_no_numbers(model: ModelProto) -> bool:
    """Tell whether any weight is NaN or infinite.

    No precision mends that: the engine would give black or torn pictures.

    Args:
        model: Any form.

    Raises:
        ValueError: The bytes of a weight are not as many as its shape says.
    """
    floats = (t for t in model.graph.initializer if t.data_type in _FLOATS)
    arrays = (numpy_helper.to_array(t).astype(np.float64) for t in floats)
    return any(not np.isfinite(a).all() for a in arrays)


def exact_session(model: ModelProto, outputs: Iterable[str] = ()) -> Any:
    """Open the graph in ONNX Runtime as it is written: one thread, no optimisation.

    Args:
        model: Any form that the CPU runs.
        outputs: Inner values to give out beside the graph's own.

    Raises:
        ModelError: ONNX Runtime refuses it.
    """
    import onnxruntime as ort

    watched = ModelProto()
    watched.CopyFrom(model)
    own = {o.name for o in model.graph.output}
    watched.graph.output.extend(ValueInfoProto(name=n) for n in outputs if n not in own)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = watched.SerializeToString()
    try:
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as e:  # ONNX Runtime's exceptions share no base but Exception
        reason = str(e).splitlines()[0][:200]
        raise ModelError(f"model: ONNX Runtime cannot load it ({reason}); export it again") from e


def observe(
    model: ModelProto, names: Sequence[str], inputs: Iterable[Feeds]
) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Yield inner values of the graph, for every batch each of them, by parts of `PART`.

    Args:
        model: Without functions.
        names: Of the values.
        inputs: Batches; names that the graph lacks are left out.
    """
    session = exact_session(model, names)
    takes = {i.name for i in session.get_inputs()}
    for batch in inputs:
        feeds = {k: v for k, v in batch.items() if k in takes}
        for at in range(0, len(names), PART):
            part = list(names[at : at + PART])
            yield from zip(part, session.run(part, feeds), strict=True)


def peaks(model: ModelProto, inputs: Iterable[Feeds]) -> list[Peak]:
    """Run the FP32 graph and return the largest absolute value of every float value, falling.

    Args:
        model: FP32, with functions or inlined.
        inputs: Batches as the graph takes them.

    Raises:
        ModelError: No inputs, or the graph does not run.
    """
    flat = inline(model)
    layers = _layers(model, flat)
    largest: dict[str, float] = {}
    for name, array in observe(flat, list(layers), inputs):
        if np.issubdtype(array.dtype, np.floating):
            peak = float(np.abs(array).max(initial=0))
            peak = peak if np.isfinite(peak) else np.inf
            largest[name] = max(peak, largest.get(name, 0.0))
    if not largest:
        raise ModelError("model: no inputs to run it on; give pictures")
    found = [Peak(layers[n][0], n, peak, layers[n][1]) for n, peak in largest.items()]
    return sorted(found, key=lambda p: p.largest, reverse=True)


def check_fp16(model: ModelProto, inputs: Iterable[Feeds]) -> list[Peak]:
    """Make sure that FP16 can hold every value of the graph; warn where it comes close.

    Args:
        model: FP32, with functions or inlined.
        inputs: Degraded pictures, and `saturated_inputs`.

    Returns:
        What `peaks` returns.

    Raises:
        ModelError: A value passes 65504; the line names the layer.
    """
    found = peaks(model, inputs)
    beyond = [p for p in found if not p.largest <= FP16_MOST]
    if beyond:
        p = next((p for p in beyond if p.in_network), beyond[0])
        raise ModelError(
            f"model: {p.layer} reaches {p.largest:.6g}, FP16 ends at {FP16_MOST:.0f}; "
            "build with --precision bf16 or fp32"
        )
    for p in found:
        if p.in_network and p.largest * MARGIN > FP16_MOST:
            share = p.largest / FP16_MOST
            _log.warning(
                "%s reaches %.6g, %.0f %% of FP16's range", p.layer, p.largest, 100 * share
            )
    return found


def _layers(model: ModelProto, flat: ModelProto) -> dict[str, tuple[str, bool]]:
    """Map each value of the inlined graph to its layer and to whether it is of the network."""
    bodies = {f.name: len(f.node) for f in model.functions}
    owners = [n.output[0] for n in model.graph.node for _ in range(bodies.get(n.op_type, 1))]
    nodes = flat.graph.node
    if len(owners) != len(nodes):
        raise ModelError(f"model: {len(owners)} nodes, {len(nodes)} inlined; export it again")
    found = {}
    for node, owner, inside in zip(nodes, owners, network_nodes(flat), strict=True):
        for output in node.output:
            found[output] = (layer_of(node) or f"{owner} ({node.op_type})", inside)
    return found


def saturated_inputs(side_px: int = SIDE_PX, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the worst that can come in, one frame a batch.

    Black, white, checkerboards of single pixels and of blocks, random bytes; each without a hole,
    all hole, and with holes in a checkerboard; no history, a random one, and a sure one that says
    the opposite; no noise and the strongest.

    Args:
        side_px: Height and width, a multiple of the spec's.
        seed: Of the random bytes.
    """
    rng = np.random.default_rng(seed)
    y, x = np.indices((side_px, side_px))
    boards = [((y // px + x // px) % 2)[None, ..., None].astype(np.uint8) for px in (1, 8, 32)]
    flat = np.zeros((1, side_px, side_px, 3), np.uint8)
    frames: list[U8] = [flat, flat + np.uint8(255), rng.integers(0, 256, flat.shape, np.uint8)]
    frames += [(b * np.uint8(255)).repeat(3, 3) for b in boards]
    none = np.zeros_like(boards[0])
    for frame in frames:
        sure = np.concatenate([255 - frame, none + np.uint8(255)], 3)
        states = (np.zeros_like(sure), rng.integers(0, 256, sure.shape, np.uint8), sure)
        masks = (none, none + np.uint8(255), boards[1])
        for i, mask in enumerate(masks):
            for sigma in (0.0, SIGMA_MOST):
                state = states[(i + (sigma > 0)) % 3]
                noise = np.full(1, sigma, np.float32)
                yield {"frame": frame, "mask": mask, "state": state, "sigma": noise}
