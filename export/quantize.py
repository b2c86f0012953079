"""The INT8 form: explicit, symmetric Q/DQ on the inputs of convolutions, in the inlined graph.

Activations S8 with one scale, weights S8 with a scale for each output channel, biases float: the
only form that TensorRT takes. A convolution's output is not quantised (that alone cost 0.2 dB at
sigma 25); a block's Add reads its convolution and the quantised identity, which TensorRT fuses.
What lies at the finest level stays float, for most of the loss sits there, and so do the pyramid
and the transposed convolutions. Every scale is a number that FP16 has, so the FP16 form of the
file has the same grid and the same weights.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from fastrestore.arrays import F32, U8
from fastrestore.degrade import add_noise, make_mask, punch
from fastrestore.errors import InputError, ModelError
from fastrestore.export.overflow import Feeds, observe
from fastrestore.export.precision import inline, layer_of
from fastrestore.export.quality import HOLES, NOISE, Runner, mean_psnr, ort_runner
from fastrestore.presets import PYRAMID_LEVELS

KEY = "fastrestore.int8"  # of the metadata, beside the spec
Method = Literal["max", "percentile"]
Ranges = Mapping[str, float]  # largest absolute value to be kept, by the name of the value
PERCENTILE = 99.99
MOST = 127  # -128 is not used: symmetric
LEAST_SCALE = 2.0**-20  # FP16 still has four bits here; a channel without weights needs some scale
GATE_HOLES_DB, GATE_NOISE_DB = 0.05, 0.1  # PSNR lost at 20 % holes, at sigma 25
GATE_LPIPS = 0.005  # added
CROP_PX = 256
MAX_RATIO, MAX_SIGMA = 0.6, 50.0
_MASKS = ("freeform", "rects", "grid", "thin")


class Record(NamedTuple):
    """How a file was quantised: part of its metadata.

    `method` and `batches` of the calibration, the layers kept float beside the finest level, and
    those that are INT8.
    """

    method: Method
    batches: int
    keep: tuple[str, ...]
    layers: tuple[str, ...]


class Loss(NamedTuple):
    """PSNR lost against FP32, in dB, at 20 % holes and at sigma 25; `of_gate` 1 = at the gate."""

    holes_db: float
    noise_db: float

    @property
    def of_gate(self) -> float:
        """The worse of both, in parts of what the gate allows."""
        return max(self.holes_db / GATE_HOLES_DB, self.noise_db / GATE_NOISE_DB)


class Choice(NamedTuple):
    """Layers that stay float, what the rest then loses, and every step that led there."""

    keep: tuple[str, ...]
    loss: Loss
    steps: tuple[tuple[str, Loss], ...]


def layers(model: ModelProto) -> list[str]:
    """Return the convolutions that may be INT8, in order: not stem, head and the finest level."""
    return [n for n in map(layer_of, _convolutions(inline(model))) if n and not _is_finest(n)]


def _convolutions(flat: ModelProto) -> list[NodeProto]:
    return [n for n in flat.graph.node if n.op_type == "Conv" and layer_of(n)]


def _is_finest(layer: str) -> bool:
    return layer in ("stem", "head", "down.0") or layer.startswith(("encoder.0.", "decoder.0."))


def ranges(model: ModelProto, calibration: Iterable[Feeds], method: Method = "max") -> Ranges:
    """Run the FP32 graph and return how far every convolution's input reaches.

    Args:
        model: FP32, with functions or inlined.
        calibration: Batches as the graph takes them.
        method: `max`; or `percentile`: the largest of the batches' `PERCENTILE`.

    Raises:
        InputError: Unknown method, or no batches.
        ModelError: A value is not finite.
    """
    if method not in get_args(Method):
        raise InputError(f"method {method}: not known; choose max or percentile")
    flat = inline(model)
    names = list(dict.fromkeys(n.input[0] for n in _convolutions(flat)))
    found: dict[str, float] = {}
    for name, array in observe(flat, names, calibration):
        size = np.abs(array)
        most = float(size.max() if method == "max" else np.percentile(size, PERCENTILE))
        if not np.isfinite(most):
            raise ModelError(f"model: {name} is not finite on the calibration set; train again")
        found[name] = max(most, found.get(name, 0.0))
    if not found:
        raise InputError("calibration: no pictures; give a folder with some")
    return found


def quantize(
    model: ModelProto,
    calibration: Iterable[Feeds],
    *,
    method: Method = "max",
    keep: Iterable[str] = (),
) -> ModelProto:
    """Return the INT8 form.

    Args:
        model: FP32, with functions and spec, as `fastrestore.export.graph.build` makes it.
        calibration: Degraded pictures as the graph takes them, see `calibration_inputs`.
        method: See `ranges`.
        keep: Layers that stay float beside the finest level, named as `layers` does.

    Returns:
        Inlined, FP32 base, Q/DQ explicit; the metadata kept, with a record under `KEY`.

    Raises:
        InputError: Unknown method, no batches, or a layer in `keep` that does not exist.
        ModelError: The graph does not run, is quantised already, or nothing is left to quantise.
    """
    if is_quantized(model):
        raise ModelError("model: is quantised already; give the FP32 file")
    batches = list(calibration)
    names, kept = layers(model), set(keep)
    if unknown := kept - set(names):
        raise InputError(f"keep: no layer {', '.join(sorted(unknown))}; layers: {', '.join(names)}")
    chosen = [n for n in names if n not in kept]
    if not chosen:
        raise ModelError("model: no layer is left for INT8; use --precision fp16")
    new = insert(model, ranges(model, batches, method), chosen)
    record = Record(method, len(batches), tuple(n for n in names if n in kept), tuple(chosen))
    props = {p.key: p.value for p in new.metadata_props}
    helper.set_model_props(new, {**props, KEY: json.dumps(record._asdict(), sort_keys=True)})
    return new


def is_quantized(model: ModelProto) -> bool:
    """Tell whether a graph holds quantised values, of whatever form."""
    return any(n.op_type in ("QuantizeLinear", "DequantizeLinear") for n in model.graph.node)


def is_for_engines(model: ModelProto) -> bool:
    """Tell whether a quantised graph is of the form that `quantize` makes: S8, never U8."""
    bytes_ = {t.name for t in model.graph.initializer if t.data_type == TensorProto.UINT8}
    nodes = (n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear"))
    return read_record(model) is not None and not any(i in bytes_ for n in nodes for i in n.input)


def read_record(model: ModelProto) -> Record | None:
    """Return how a file was quantised; None if it was not.

    Raises:
        ModelError: The record cannot be read.
    """
    for prop in model.metadata_props:
        if prop.key == KEY:
            try:
                data = json.loads(prop.value)
                keep, chosen = (tuple(map(str, data[k])) for k in ("keep", "layers"))
                return Record(data["method"], int(data["batches"]), keep, chosen)
            except (ValueError, TypeError, KeyError) as e:
                raise ModelError(
                    f"model: its INT8 record cannot be read ({e}); make it anew"
                ) from e
    return None


def insert(model: ModelProto, reach: Ranges, chosen: Collection[str]) -> ModelProto:
    """Return the inlined graph with Q/DQ on the inputs of the chosen convolutions.

    Args:
        model: FP32, with functions or inlined; not changed.
        reach: As `ranges` returns it.
        chosen: Names of layers.
    """
    flat = inline(model)
    weights = {t.name: t for t in flat.graph.initializer}
    targets = [n for n in _convolutions(flat) if layer_of(n) in chosen]
    inputs = dict.fromkeys(n.input[0] for n in targets)
    renamed = {name: f"{name}.dequantized" for name in inputs}
    zero = "int8.zero"
    new = [numpy_helper.from_array(np.zeros((), np.int8), zero)]
    nodes: list[NodeProto] = []
    for node in flat.graph.node:
        is_target = any(node is t for t in targets)
        node.input[:] = [renamed.get(i, i) for i in node.input]
        if is_target:
            tensors, dequantize = _weights(weights.pop(node.input[1]))
            node.input[1] = dequantize.output[0]
            new += tensors
            nodes.append(dequantize)
        nodes.append(node)
        for name in node.output:
            if name in renamed:
                scale = numpy_helper.from_array(_scale(np.float32(reach[name])), f"{name}.scale")
                new.append(scale)
                nodes += _pair(name, renamed[name], scale.name, zero)
    del flat.graph.node[:], flat.graph.initializer[:], flat.graph.value_info[:]
    flat.graph.node.extend(nodes)
    flat.graph.initializer.extend([*weights.values(), *new])
    return flat


def _pair(name: str, out: str, scale: str, zero: str) -> list[NodeProto]:
    whole = f"{name}.int8"
    return [
        helper.make_node("QuantizeLinear", [name, scale, zero], [whole], whole),
        helper.make_node("DequantizeLinear", [whole, scale, zero], [out], out),
    ]


def _weights(tensor: TensorProto) -> tuple[list[TensorProto], NodeProto]:
    """Return a convolution's weights as S8 with scales and zeros, and the node that reads them."""
    array: F32 = numpy_helper.to_array(tensor)
    scale = _scale(np.abs(array).reshape(len(array), -1).max(1))
    steps = np.rint(array / scale.reshape(-1, *[1] * (array.ndim - 1)))
    whole = np.clip(steps, -MOST, MOST).astype(np.int8)
    names = [f"{tensor.name}.{part}" for part in ("int8", "scale", "zero")]
    arrays = (whole, scale, np.zeros(len(scale), np.int8))
    out = f"{tensor.name}.dequantized"
    node = helper.make_node("DequantizeLinear", names, [out], out, axis=0)
    return [numpy_helper.from_array(a, n) for a, n in zip(arrays, names, strict=True)], node


def _scale(reach: npt.ArrayLike) -> F32:
    """Return the smallest numbers that FP16 has and that hold the reach in 127 steps."""
    exact = np.maximum(np.asarray(reach, np.float64) / MOST, LEAST_SCALE)
    with np.errstate(over="ignore"):  # refused below
        half = exact.astype(np.float16)
    half = np.where(half < exact, np.nextafter(half, np.float16(np.inf)), half)
    if not np.isfinite(half).all():
        raise ModelError("model: a value is beyond what FP16 scales can hold; use fp32")
    return half.astype(np.float32)


def calibration_inputs(
    pictures: Sequence[U8], n: int, seed: int, *, model: ModelProto
) -> Iterator[dict[str, Any]]:
    """Yield degraded crops: holes of 0-60 %, sigma 0-50 in half of them, a past in a third.

    Args:
        pictures: Undamaged, uint8 RGB, at least 64 px a side.
        n: How many crops; more than pictures: several of each.
        seed: Decides all of it.
        model: FP32: a past is what it makes of another damaged view of the same crop.

    Raises:
        InputError: No pictures, or one that is too small.
    """
    if not pictures or n < 1:
        raise InputError("calibration: no pictures; give a folder with some")
    rng = np.random.default_rng(seed)
    run = ort_runner(model)
    ratios = rng.permutation(np.linspace(0, MAX_RATIO, n))
    sigmas = rng.permutation(np.linspace(0, MAX_SIGMA, n)) * (np.arange(n) % 2)
    for i in range(n):
        sigma = np.full(1, sigmas[i], np.float32)
        y, x, side = _place(pictures[i % len(pictures)], rng)
        picture = pictures[i % len(pictures)]
        state = np.zeros((1, *side, 4), np.uint8)
        views = 2 if i % 3 == 2 else 1
        for view in range(views):
            dy, dx = rng.integers(0, 3, 2) * view  # the camera moved by up to two pixels
            crop = np.roll(picture, (-dy, -dx), (0, 1))[y : y + side[0], x : x + side[1]]
            mask = make_mask(_MASKS[(i + view) % 4], rng, *side, _drawable(i + view, ratios[i]))
            frame = punch(add_noise(crop, sigmas[i], rng), mask)
            feeds = {
                "frame": frame[None],
                "mask": mask[None, ..., None],
                "state": state,
                "sigma": sigma,
            }
            if view + 1 < views:
                state = run(frame[None], mask[None, ..., None], state, sigma)[1]
        yield feeds


def _drawable(i: int, ratio: float) -> float:
    """Scratches that cover more than a fifth are no scratches."""
    return min(ratio, 0.2) if _MASKS[i % 4] == "thin" else ratio


def _place(picture: U8, rng: np.random.Generator) -> tuple[int, int, tuple[int, int]]:
    """Return the corner and the size of a crop that the pyramid divides without a remainder."""
    h, w = picture.shape[:2]
    grid = 2**PYRAMID_LEVELS
    side = (min(CROP_PX, h // grid * grid), min(CROP_PX, w // grid * grid))
    if 0 in side:
        raise InputError(f"calibration: a picture is {w}x{h} px; at least {grid} a side is needed")
    return int(rng.integers(h - side[0] + 1)), int(rng.integers(w - side[1] + 1)), side


class Judge:
    """Measures what quantising some layers loses, on fixed damaged pictures."""

    def __init__(self, model: ModelProto, reach: Ranges, test: Mapping[str, U8]) -> None:
        """Measure FP32 first.

        Args:
            model: FP32.
            reach: As `ranges` returns it.
            test: Undamaged pictures by name, none of them used for calibration.

        Raises:
            InputError: No pictures.
        """
        if not test:
            raise InputError("sensitivity: no test pictures; give some")
        self.model, self.reach = inline(model), reach
        self._damaged = [[c.damage(k, v) for k, v in test.items()] for c in (HOLES, NOISE)]
        self._base = self._psnr(ort_runner(self.model))

    def _psnr(self, run: Runner) -> list[float]:
        return [mean_psnr(run, damaged) for damaged in self._damaged]

    def loss(self, chosen: Collection[str]) -> Loss:
        """Return what is lost when these layers are INT8 and no others."""
        now = self._psnr(ort_runner(insert(self.model, self.reach, chosen)))
        return Loss(*(b - n for b, n in zip(self._base, now, strict=True)))


def sensitivity(judge: Judge) -> dict[str, Loss]:
    """Return for every layer what is lost when it alone is INT8; the worst first."""
    found = {name: judge.loss([name]) for name in layers(judge.model)}
    return dict(sorted(found.items(), key=lambda item: item[1].of_gate, reverse=True))


def choose_keep(judge: Judge, worst: Mapping[str, Loss], share: float = 0.5) -> Choice:
    """Leave the worst layers float, one after the other, until the loss is small enough.

    Args:
        judge: Measures.
        worst: As `sensitivity` returns it.
        share: Of the gate, that may be used up.

    Raises:
        ModelError: No layer could be INT8.
    """
    order = list(worst)
    steps: list[tuple[str, Loss]] = []
    for n in range(len(order)):
        loss = judge.loss(order[n:])
        steps.append((order[n - 1] if n else "", loss))
        if loss.of_gate <= share:
            return Choice(tuple(order[:n]), loss, tuple(steps))
    raise ModelError("model: every layer costs more than the INT8 gate allows; use fp16")
