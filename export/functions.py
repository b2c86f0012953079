"""Bodies of the model-local functions: `kernels.fusion` once more, as ONNX operators.

One function is one kernel launch, so that a plugin can stand in for it. Every name inside starts
with the function's name (TensorRT's parser binds operands by name, across functions), attributes
are always literal (the parser drops referenced dilations and strides without a word), and no value
is uint8 (TensorRT allows it only at the ends of the network). Pictures are float NHWC in levels.

What is `1 - x` or `min(x, 1)` on paper is a HardSigmoid where x has one channel: as a Sub or Min
with a scalar it took 5.7 instead of 0.1 ms in ONNX Runtime (720p, one thread). Both bounds of a
Clip are given: an absent one is the largest FP32 number, which FP16 does not have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from onnx import FunctionProto, NodeProto, helper, numpy_helper

from fastrestore.arrays import F32
from fastrestore.kernels import fusion
from fastrestore.presets import IN_CHANNELS, UNSHUFFLE

DOMAIN = "fastrestore"
OPSET = 19  # TensorRT >= 9.2; the first with FP16 scales for INT8
PLUGIN_ATTRIBUTES = {"plugin_namespace": DOMAIN, "plugin_version": "1", "aot": 1}

_CELLS = UNSHUFFLE**2
_SOFT_MASK, _NOISE = 3, 5  # channels of `fusion.pack`
_BINOMIAL: F32 = fusion.BINOMIAL.numpy()
_LUMA: F32 = fusion.LUMA.numpy()
_SOBEL_X: F32 = np.array([[-0.125, 0, 0.125], [-0.25, 0, 0.25], [-0.125, 0, 0.125]], np.float32)
_SOBEL: F32 = np.stack([_SOBEL_X, _SOBEL_X.T])[:, None]


class Value:
    """A tensor inside a function body; an operator appends the node of the same meaning."""

    __slots__ = ("body", "name")

    def __init__(self, body: Body, name: str) -> None:
        self.body, self.name = body, name

    def __add__(self, other: Operand) -> Value:
        return self.body.add("Add", self, other)

    def __radd__(self, other: Operand) -> Value:
        return self.body.add("Add", other, self)

    def __sub__(self, other: Operand) -> Value:
        return self.body.add("Sub", self, other)

    def __rsub__(self, other: Operand) -> Value:
        return self.body.add("Sub", other, self)

    def __mul__(self, other: Operand) -> Value:
        return self.body.add("Mul", self, other)

    def __truediv__(self, other: Operand) -> Value:
        return self.body.add("Div", self, other)

    def __rtruediv__(self, other: Operand) -> Value:
        return self.body.add("Div", other, self)


# None leaves an optional input out, a list is an int64 vector, the rest float32.
Operand: TypeAlias = Value | float | list[int] | F32 | None


class Body:
    """Writes one function. Constants are emitted at their first use, hence never unused ones."""

    def __init__(self, name: str, *inputs: str) -> None:
        self.name = name
        self.inputs = [Value(self, f"{name}/{i}") for i in inputs]
        self._nodes: list[NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def add(self, kind: str, *operands: Operand, **attributes: Any) -> Value:
        """Append one node and return its output."""
        names = [self._name(o) for o in operands]
        out = f"{self.name}/{kind}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, names, [out], out, **attributes))
        return Value(self, out)

    def function(self, **outputs: Value) -> FunctionProto:
        """Finish: the outputs, in that order, get the names of the arguments."""
        final = {value.name: f"{self.name}/{name}" for name, value in outputs.items()}
        for node in self._nodes:
            node.input[:] = [final.get(name, name) for name in node.input]
            node.output[:] = [final.get(name, name) for name in node.output]
        return helper.make_function(
            DOMAIN,
            self.name,
            [value.name for value in self.inputs],
            list(final.values()),
            self._nodes,
            [helper.make_opsetid("", OPSET)],
            list(PLUGIN_ATTRIBUTES),
        )

    def _name(self, operand: Operand) -> str:
        if isinstance(operand, Value):
            return operand.name
        if operand is None:
            return ""
        array = np.asarray(operand, np.int64 if isinstance(operand, list) else np.float32)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"{self.name}/Constant_{len(self._nodes)}"
            value = numpy_helper.from_array(array, name)
            self._nodes.append(helper.make_node("Constant", [], [name], name, value=value))
            self._constants[key] = name
        return self._constants[key]


def op(kind: str, first: Value, *operands: Operand, **attributes: Any) -> Value:
    """Append a node that is not an arithmetic operator."""
    return first.body.add(kind, first, *operands, **attributes)


def nchw(x: Value) -> Value:
    """Turn a picture's axes from `(N, H, W, C)`."""
    return op("Transpose", x, perm=[0, 3, 1, 2])


def _inverse(x: Value) -> Value:
    """Return `1 - x`, clamped to 0..1."""
    return op("HardSigmoid", x, alpha=-1.0, beta=1.0)


def _at_most_one(x: Value) -> Value:
    """Return min(x, 1) of x >= 0. Not a HardSigmoid with beta 0: OpenVINO takes that for 0.5."""
    return op("Clip", x, 0.0, 1.0)


def _channels(x: Value, start: int, stop: int) -> Value:
    return op("Slice", x, [start], [stop], [1])


def _gather(x: Value, index: list[int]) -> Value:
    return op("Gather", x, index, axis=1)


def _concat(*values: Value) -> Value:
    return op("Concat", *values, axis=1)


def _pull(x: Value, channels: int) -> Value:
    kernel = np.tile(_BINOMIAL, (channels, 1, 1, 1))
    pads, shape = [1, 1, 2, 2], [4, 4]
    return op("Conv", x, kernel, kernel_shape=shape, strides=[2, 2], pads=pads, group=channels)


def _normalise(x: Value, weight_of: list[int]) -> Value:
    return x / op("Max", _gather(x, weight_of), 0.25)


def _enlarge(x: Value, factor: int = 2) -> Value:
    scales = np.array([1, 1, factor, factor], np.float32)
    mode = "half_pixel"
    return op("Resize", x, None, scales, mode="linear", coordinate_transformation_mode=mode)


def _push(fine: Value, coarse: Value, weight_of: list[int]) -> Value:
    size = op("Shape", fine, start=2, end=4)
    enlarged = op("Slice", _enlarge(coarse), [0, 0], size, [2, 3])
    return fine + enlarged * (1 - _gather(fine, weight_of))


def _history(state: Value) -> tuple[Value, Value, Value]:
    """Return the past's base, its confidence, and n = the frames it is worth."""
    state = nchw(state)
    confidence = _channels(state, 3, 4)
    b = op("HardSigmoid", confidence, alpha=-1 / 255, beta=1.0)
    b = op("Clip", b, 1 / (fusion.MAX_FRAMES + 1), 1.0)
    return _channels(state, 0, 3), confidence, _inverse(b) / b


def _variances(sigma: Value) -> tuple[Value, Value]:
    """Return t2 and s2 / t2."""
    s2 = sigma * sigma
    t2 = s2 + fusion.TAU**2
    return t2, s2 / t2


def _energy(band: Value, i: int) -> Value:
    weight = op("Max", _channels(band, 4, 5), 0.05)
    difference = _channels(band, 0, 3) / weight
    square = op("ReduceMean", difference * difference, [1], keepdims=1)
    noise = _channels(band, 3, 4) / weight * fusion.BAND_NOISE[i]
    e = op("Min", square - noise, fusion.MAX_ENERGY)
    w = op("Min", _channels(band, 4, 5) * 2.0, 1.0)
    return _concat(e * w, w)


def _first_level(frame: Value, known: Value) -> Value:
    return _normalise(_pull(_concat(frame * (1 / 255) * known, known), 4), fusion.FILL)


def _pull_frame() -> FunctionProto:
    body = Body("PullFrame", "frame", "mask", "state", "sigma")
    x, mask, state, sigma = body.inputs
    frame, known = nchw(x), _inverse(nchw(mask))
    past, confidence, n = _history(state)
    t2, ratio = _variances(sigma)
    comparable = known * _at_most_one(confidence)
    difference = (frame - past) / op("Sqrt", t2)
    expected = ratio * (1 + op("Reciprocal", op("Clip", n, 0.1, fusion.MAX_FRAMES)))
    band = _pull(_concat(difference * comparable, expected * comparable, comparable), 5)
    return body.function(p1=_first_level(frame, known), b1=band)


def _pull_band_1() -> FunctionProto:
    body = Body("PullBand1", "p1", "b1")
    p1, b1 = body.inputs
    energy = _normalise(_pull(_energy(b1, 0), 2), fusion.ENERGY)
    return body.function(p2=_normalise(_pull(p1, 4), fusion.FILL), b2=_concat(_pull(b1, 5), energy))


def _pull_band_2() -> FunctionProto:
    body = Body("PullBand2", "p2", "b2")
    p2, b2 = body.inputs
    e1 = _normalise(_pull(_channels(b2, 5, 7), 2), fusion.ENERGY)
    e2 = _normalise(_pull(_energy(b2, 1), 2), fusion.ENERGY)
    gain1, gain2 = fusion.BAND_GAIN
    strongest = op("Max", _channels(e1, 0, 1) * gain1, _channels(e2, 0, 1) * gain2)
    seen = op("Max", _channels(e1, 1, 2), _channels(e2, 1, 2))
    return body.function(p3=_concat(_normalise(_pull(p2, 4), fusion.FILL), strongest, seen))


def _pull_level(weight_of: list[int]) -> FunctionProto:
    body = Body("PullLevel", "p")
    (p,) = body.inputs
    return body.function(q=_normalise(_pull(p, len(weight_of)), weight_of))


def _mean_fill(weight_of: list[int]) -> FunctionProto:
    body = Body("MeanFill", "p")
    (p,) = body.inputs
    mean = op("ReduceMean", p, [2, 3], keepdims=1)
    mean = mean / op("Max", _gather(mean, weight_of), 1e-3)
    return body.function(f=p + mean * (1 - _gather(p, weight_of)))


def _push_level(name: str, weight_of: list[int]) -> FunctionProto:
    body = Body(name, "p", "f")
    p, f = body.inputs
    return body.function(o=_push(p, f, weight_of))


def _push_split() -> FunctionProto:
    """Leave the pyramid's motion level: the fill goes on alone."""
    body = Body("PushSplit", "p", "f")
    p, f = body.inputs
    o = _push(p, f, fusion.FILL_AND_ENERGY)
    return body.function(o=_channels(o, 0, 4), motion=_channels(o, 4, 5))


def _fill(frame: Value, known: Value, hole: Value, coarse: Value) -> Value:
    return frame * known + _enlarge(_channels(coarse, 0, 3)) * hole * 255.0


def features(base: Value, soft_mask: Value, noise: Value) -> Value:
    """Return the packed network input; base in levels, noise already on the map's scale."""
    base = base * (1 / 255)
    luma = op("Conv", base, _LUMA, kernel_shape=[1, 1])
    padded = op("Pad", luma, [0, 0, 1, 1, 0, 0, 1, 1], mode="edge")
    d = op("Conv", padded, _SOBEL, kernel_shape=[3, 3])
    edges = op("Sqrt", op("ReduceSum", d * d, [1], keepdims=1))
    spare = [soft_mask * 0.0] * (IN_CHANNELS - 6)
    return op("SpaceToDepth", _concat(base, soft_mask, edges, noise, *spare), blocksize=UNSHUFFLE)


def _pack_frame() -> FunctionProto:
    body = Body("PackFrame", "frame", "mask", "state", "sigma", "f", "motion")
    x, mask, state, sigma, coarse, motion = body.inputs
    frame, mask = nchw(x), nchw(mask)
    known, hole = _inverse(mask), _at_most_one(mask)
    past, _, n = _history(state)
    t2, ratio = _variances(sigma)
    n = n / (1 + n * op("Relu", _enlarge(motion, 2**fusion.MOTION_LEVEL)))
    c = (ratio + (fusion.FILL_SIGMA**2 / t2 - ratio) * hole) * n
    g = c / (c + 1)
    filled = _fill(frame, known, hole, coarse)
    base = filled + g * (past - filled)
    soft_mask = hole - hole * g
    n = op("Min", n + known, op("Clip", sigma * 2.0 - 1, 1.0, fusion.MAX_FRAMES))
    noise = sigma * (4 / 255) / op("Sqrt", op("Max", n, 1.0)) * _inverse(soft_mask)
    # Clipped: FP16 rounding can lift a white fill to 256, which is not a uint8.
    levels = op("Clip", _concat(base, n * 255.0 / (n + 1)), 0.0, 255.0)
    next_state = op("Transpose", op("Round", levels), perm=[0, 2, 3, 1])
    return body.function(packed=features(base, soft_mask, noise), next=next_state)


def _unpack_frame() -> FunctionProto:
    body = Body("UnpackFrame", "residual", "packed")
    residual, packed = body.inputs
    kn = _gather(packed, [_NOISE + IN_CHANNELS * s for s in range(_CELLS)])
    kn = kn * (255 / 4 / fusion.TAU_CORRECTION)
    kn = kn * kn
    soft_mask = _gather(packed, [_SOFT_MASK + IN_CHANNELS * s for s in range(_CELLS)])
    k = (kn + soft_mask) / (kn + 1)
    base = _gather(packed, [c + IN_CHANNELS * s for s in range(_CELLS) for c in range(3)])
    y = residual * _gather(k, [s for s in range(_CELLS) for _ in range(3)]) + base
    y = op("Round", op("Clip", y * 255.0, 0.0, 255.0))
    y = op("DepthToSpace", y, blocksize=UNSHUFFLE, mode="DCR")
    return body.function(restored=op("Transpose", y, perm=[0, 2, 3, 1]))


def residual_block(dilation: int) -> FunctionProto:
    """Return `ResidualBlockD1`, `D2` and so on; see `train.layers.ResidualBlock`."""
    body = Body(f"ResidualBlockD{dilation}", "x", "w3", "b3", "w1", "b1")
    x, w3, b3, w1, b1 = body.inputs
    d = dilation
    y = op("Conv", x, w3, b3, kernel_shape=[3, 3], pads=[d] * 4, dilations=[d, d])
    return body.function(y=op("Conv", op("Relu", y), w1, b1, kernel_shape=[1, 1]) + x)


def _still_pull_frame() -> FunctionProto:
    body = Body("PullFrame", "frame", "mask")
    x, mask = body.inputs
    return body.function(p1=_first_level(nchw(x), _inverse(nchw(mask))))


def _still_pack_frame() -> FunctionProto:
    body = Body("PackFrame", "frame", "mask", "sigma", "f")
    x, mask, sigma, coarse = body.inputs
    frame, mask = nchw(x), nchw(mask)
    known, hole = _inverse(mask), _at_most_one(mask)
    base = _fill(frame, known, hole, coarse)
    return body.function(packed=features(base, hole, sigma * (4 / 255) * known))


def make_functions(dilations: Sequence[int], state: bool = True) -> Iterator[FunctionProto]:
    """Yield the functions that the graph calls.

    Args:
        dilations: Of the residual blocks, each once.
        state: False for the stills-only graph: no motion, no average with the past.
    """
    weight_of = fusion.FILL_AND_ENERGY if state else fusion.FILL
    if state:
        yield from (_pull_frame(), _pull_band_1(), _pull_band_2())
        yield from (_push_level("PushLevel6", weight_of), _push_split(), _pack_frame())
    else:
        yield from (_still_pull_frame(), _still_pack_frame())
    yield from (
        _pull_level(weight_of),
        _mean_fill(weight_of),
        _push_level("PushLevel", fusion.FILL),
    )
    yield from (residual_block(d) for d in dilations)
    yield _unpack_frame()
