"""The restored picture against float64 and against the bytes; kernels in the interpreter."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")
import torch
from torch import Tensor

from fastrestore.errors import InputError
from fastrestore.kernels import fusion, launch
from fastrestore.kernels.operator import Case
from fastrestore.kernels.pack import space_to_depth
from fastrestore.kernels.unpack import (
    OPERATOR,
    PLUGIN,
    depth_to_space,
    inputs,
    reference,
    traffic,
    unpack,
)

CPU = torch.device("cpu")
FORMS = [(12, False), (12, True), (16, False), (16, True)]
interpreted = pytest.mark.skipif(
    not launch.INTERPRETED, reason="kernels run on the GPU here, not in the interpreter"
)


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill memory for results with what it does not hold by chance."""
    allocate = launch.allocate
    monkeypatch.setattr(launch, "allocate", lambda *a: allocate(*a).fill_(0xAA))


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without the interpreter: the op runs its reference."""
    monkeypatch.setattr(launch, "INTERPRETED", False)


def make(
    n: int, height: int, width: int, channels: int = 12, composite: bool = False, **changes: Any
) -> dict[str, Any]:
    """Return the arguments of `unpack` by name, some replaced."""
    options = {"channels": channels, "composite": composite}
    values = inputs(Case(n, height, width, options), CPU, 13)
    names = ("head", "packed", "frame", "mask", "composite")
    return {**dict(zip(names, values, strict=True)), **changes}


def in_float64(arguments: dict[str, Any]) -> Tensor:
    wide = {k: v.double() if k in ("head", "packed") else v for k, v in arguments.items()}
    return reference(**wide)


def still(levels: Tensor, mask: Tensor, sigma: float = 0.0) -> Tensor:
    """Pack whole levels `(N, H, W, 3)` as a still without noise does, in float16."""
    base = levels.permute(0, 3, 1, 2) / 255
    hole = (mask != 0).permute(0, 3, 1, 2).float()
    return space_to_depth(fusion.pack(base, hole, sigma * (1 - hole))).half()


@interpreted
@pytest.mark.parametrize(("channels", "composite"), FORMS)
@pytest.mark.parametrize(("n", "height", "width"), [(2, 6, 138), (1, 2, 2), (1, 4, 128)])
def test_result_is_that_of_float64(
    n: int, height: int, width: int, channels: int, composite: bool
) -> None:
    arguments = make(n, height, width, channels, composite)
    restored, want = unpack(**arguments), in_float64(arguments)
    assert restored.dtype == torch.uint8
    apart = (restored.int() - want.int()).abs()
    assert int(apart.max()) <= 1
    assert int((apart > 0).sum()) <= 1 + apart.numel() // 1000


@interpreted
@pytest.mark.parametrize("channels", [12, 16])
def test_known_pixels_without_noise_come_back_to_the_byte(channels: int) -> None:
    """All 256 levels, without composite, whatever the correction says."""
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 8, 32, 1).repeat(1, 1, 1, 3)
    mask = torch.zeros(1, 8, 32, 1, dtype=torch.uint8)
    arguments = make(1, 8, 32, channels, frame=255 - levels, mask=mask, packed=still(levels, mask))
    assert float(arguments["head"].abs().max()) > 0.4
    assert torch.equal(unpack(**arguments), levels)


@interpreted
def test_noise_opens_the_known_pixels_and_a_hole_takes_all() -> None:
    levels = torch.full((1, 2, 4, 3), 100, dtype=torch.uint8)
    mask = torch.tensor([0, 0, 1, 1], dtype=torch.uint8).repeat(2, 1)[None, :, :, None]
    packed = still(levels, mask, sigma=fusion.TAU_CORRECTION)
    head = torch.full((1, 1, 2, 12), 20 / 255).half()
    restored = unpack(head, packed, levels, mask.contiguous(), False)
    assert restored[0, :, :, 0].tolist() == [[110, 110, 120, 120]] * 2  # half, and all of it


@interpreted
def test_result_is_clamped_and_rounded_half_to_even() -> None:
    mask = torch.ones(1, 2, 2, 1, dtype=torch.uint8)
    base = torch.zeros(1, 2, 2, 3, dtype=torch.uint8)
    # In float16 0.5 is the one tie between 0 and 1: 127.5. Others: base 0.25 and as much again
    values = [0.5, 2.0, -2.0, 0.4995, 0.5005, 126.4 / 255, 1.0, 6e-8, 0.0, 65504.0, -65504.0, 0.25]
    head = torch.tensor(values).half().reshape(1, 1, 1, 12)
    packed = still(base, mask)
    packed[..., 24 + 2] = 0.25
    restored = unpack(head, packed, base, mask, False)
    assert restored.flatten().tolist() == [128, 255, 0, 127, 128, 126, 255, 0, 0, 255, 0, 128]


@interpreted
@pytest.mark.parametrize("hole", [1, 255])
def test_composite_copies_bytes_and_reads_nothing_else_there(hole: int) -> None:
    arguments = make(1, 4, 34, 16, True)
    frame, mask = arguments["frame"], arguments["mask"] * hole
    known = (mask == 0).permute(0, 3, 1, 2)
    junk = arguments["packed"].masked_fill(space_to_depth(known.expand(1, 8, 4, 34)), float("nan"))
    restored = unpack(**{**arguments, "mask": mask, "packed": junk})
    without = unpack(**{**arguments, "composite": False})
    assert torch.equal(restored, torch.where(mask == 0, frame, without))
    assert 0 < int((mask != 0).sum()) < mask.numel()


@interpreted
def test_padding_of_the_head_is_not_read() -> None:
    arguments = make(1, 4, 6, 16)
    arguments["head"][..., 12:] = float("nan")
    short = {**arguments, "head": arguments["head"][..., :12].contiguous()}
    assert torch.equal(unpack(**arguments), unpack(**short))


@interpreted
def test_plugin_form_gives_whole_levels_in_float16() -> None:
    arguments = make(2, 6, 10, 16)
    levels = torch.full((2, 6, 10, 3), float("nan")).half()
    sizes = {"n": 2, "height": 6, "width": 10}
    PLUGIN(sizes, arguments["head"], arguments["packed"], 6, 10, levels)
    assert torch.equal(levels, unpack(**arguments).half())


def test_reference_is_the_formula_of_the_graph(plain: None) -> None:
    arguments = make(1, 6, 10, 16)
    head, packed = arguments["head"].float(), arguments["packed"].float()
    restored = unpack(**arguments)
    for s, (sy, sx) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        soft, noise = packed[..., 8 * s + 3], packed[..., 8 * s + 5]
        kn = (noise * 255 / 16) ** 2
        k = ((kn + soft) / (kn + 1))[..., None]
        y = packed[..., 8 * s : 8 * s + 3] + k * head[..., 3 * s : 3 * s + 3]
        want = (y * 255).clamp(0, 255).round().to(torch.uint8)
        assert torch.equal(restored[:, sy::2, sx::2], want)


def test_depth_to_space_undoes_space_to_depth() -> None:
    x = torch.rand(2, 3, 6, 10)
    assert torch.equal(depth_to_space(space_to_depth(x), 3), x)


BAD = [
    ("frame", torch.zeros(1, 4, 6, 3), "frame must be uint8"),
    ("frame", torch.zeros(1, 4, 0, 3, dtype=torch.uint8), "frame must be uint8"),
    ("frame", torch.zeros(1, 5, 6, 3, dtype=torch.uint8), "frame is 5x6"),
    ("frame", torch.zeros(1, 4, 7, 3, dtype=torch.uint8), "frame is 4x7"),
    ("mask", torch.zeros(1, 4, 6, 3, dtype=torch.uint8), r"mask must be .*\(1, 4, 6, 1\)"),
    ("head", torch.zeros(1, 2, 3, 12), "head must be float16"),
    ("head", torch.zeros(1, 2, 3, 8).half(), r"head must be float16 \(1, 2, 3, 12\)"),
    ("head", torch.zeros(1, 12, 2, 3).half().permute(0, 2, 3, 1), "head is not contiguous"),
    ("packed", torch.zeros(1, 2, 3, 16).half(), r"packed must be .*\(1, 2, 3, 32\)"),
    ("packed", torch.zeros(1, 2, 3, 32, device="meta").half(), "packed is on meta"),
    ("head", None, "head must be a tensor, got NoneType"),
    ("composite", 0, "composite must be a bool, got int"),
    ("composite", None, "composite must be a bool, got NoneType"),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD)
def test_wrong_arguments_are_named(name: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"^unpack: .*{message}") as error:
        unpack(**make(1, 4, 6, **{name: value}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("channels", "composite"), FORMS)
def test_traffic_is_every_byte_once(channels: int, composite: bool) -> None:
    case = Case(2, 40, 200, {"channels": channels, "composite": composite})
    *tensors, _ = inputs(case, CPU, 0)
    sizes = [x.numel() * x.element_size() for x in tensors]
    counted = traffic(case)
    assert counted.read == sum(sizes if composite else sizes[:2])
    assert counted.written == sizes[2]


def test_every_form_is_shipped() -> None:
    forms = {form.name: form for form in OPERATOR.launches()}
    assert set(forms) == {
        "unpack_12", "unpack_12_composite", "unpack_16", "unpack_16_composite", "unpack_frame",
    }  # fmt: skip
    assert [name for name, form in forms.items() if form.plugin] == ["unpack_frame"]
