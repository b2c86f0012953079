"""Sobel gradients against float64, by hand, and against eager torch; kernels interpreted."""

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
from fastrestore.kernels.sobel import OPERATOR, sobel, traffic

CPU = torch.device("cpu")
interpreted = pytest.mark.skipif(
    not launch.INTERPRETED, reason="kernels run on the GPU here, not in the interpreter"
)


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill memory for results with NaN."""
    allocate = launch.allocate
    monkeypatch.setattr(launch, "allocate", lambda *a: allocate(*a).fill_(float("nan")))


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without the interpreter: the op runs its reference."""
    monkeypatch.setattr(launch, "INTERPRETED", False)


def explicit(x: Tensor, gradients: bool) -> Tensor:
    """Correlate with the two kernels in the type of `x`, replicated border."""
    planes = x.permute(0, 3, 1, 2)
    if planes.shape[1] == 3:
        planes = (planes * fusion.LUMA.to(x)).sum(1, keepdim=True)
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=x.dtype) / 8
    padded = torch.nn.functional.pad(planes, (1, 1, 1, 1), mode="replicate")
    both = torch.nn.functional.conv2d(padded, torch.stack([kernel, kernel.T])[:, None])
    found = both if gradients else both.square().sum(1, keepdim=True).sqrt()
    return found.permute(0, 2, 3, 1)


@pytest.mark.parametrize("case", OPERATOR.cases, ids=str)
def test_errors_are_at_most_twice_those_of_eager_torch(case: Case) -> None:
    x, gradients = OPERATOR.inputs(case, CPU, 5)
    got, want = sobel(x, gradients), explicit(x.double(), gradients)
    eager = explicit(x.float() if x.dtype == torch.uint8 else x, gradients).to(got.dtype)
    assert got.shape == want.shape
    assert got.dtype == (torch.float32 if x.dtype == torch.float32 else torch.float16)
    errors = [float((g.double() - want).abs().max()) for g in (got, eager)]
    rounding = torch.finfo(got.dtype).eps / 2 * float(want.abs().max())
    assert errors[0] <= max(2 * errors[1], rounding)
    assert errors[0] <= OPERATOR.tolerance[0]


@interpreted
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32])
def test_plain_and_interpreted_forms_agree(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = (torch.rand(1, 5, 6, 3) * 200).to(dtype)
    kernel = sobel(x)
    monkeypatch.setattr(launch, "INTERPRETED", False)
    rtol = 1e-3 if kernel.dtype == torch.float16 else 1e-6
    torch.testing.assert_close(kernel, sobel(x), rtol=rtol, atol=0)


@interpreted
def test_runs_repeat_to_the_bit() -> None:
    x, gradients = OPERATOR.inputs(OPERATOR.cases[0], CPU, 1)
    assert torch.equal(sobel(x, gradients), sobel(x, gradients))


def test_a_ramp_has_its_slope_and_a_border_half_of_it() -> None:
    x = (3 * torch.arange(6, dtype=torch.uint8)).view(1, 1, 6, 1).expand(1, 4, 6, 1).contiguous()
    slope = torch.tensor([1.5, 3, 3, 3, 3, 1.5], dtype=torch.float16).expand(1, 4, 6)
    assert torch.equal(sobel(x)[..., 0], slope)
    found = sobel(x, gradients=True)
    assert torch.equal(found[..., 0], slope)
    assert not found[..., 1].any()
    turned = sobel(x.transpose(1, 2).contiguous(), gradients=True)
    assert torch.equal(turned[..., 1], slope.transpose(1, 2))
    assert not turned[..., 0].any()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32])
def test_one_colour_has_no_edges_at_all(dtype: torch.dtype) -> None:
    colour = torch.tensor([0.3, 0.7, 0.9]) * (255 if dtype == torch.uint8 else 1)
    assert not sobel(colour.to(dtype).expand(1, 3, 5, 3).contiguous()).any()


def test_luma_weighs_the_channels() -> None:
    for channel, weight in enumerate((0.299, 0.587, 0.114)):
        x = torch.zeros(1, 3, 4, 3)
        x[..., 2:, channel] = 1
        assert float(sobel(x)[0, 1, 1]) == pytest.approx(weight / 2)


def test_small_half_precision_edges_survive() -> None:
    """Their square is below the smallest float16."""
    x = torch.zeros(1, 3, 4, 1, dtype=torch.float16)
    x[:, :, 2:] = 2**-13
    assert float(sobel(x)[0, 1, 1]) == 2**-14


@pytest.mark.usefixtures("plain")
def test_op_is_sound_and_compiles_whole() -> None:
    for gradients in (False, True):
        x = torch.randint(0, 256, (2, 5, 6, 3), dtype=torch.uint8)
        torch.library.opcheck(torch.ops.fastrestore.sobel.default, (x, gradients))
        compiled = torch.compile(sobel, backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(x, gradients), sobel(x, gradients))


def test_traffic_is_counted_by_hand() -> None:
    case = Case(2, 10, 20, {"dtype": "u8", "channels": 3, "gradients": False})
    assert traffic(case)[:2] == (400 * 3, 400 * 2)
    case = Case(2, 10, 20, {"dtype": "fp32", "channels": 1, "gradients": True})
    assert traffic(case)[:2] == (400 * 4, 400 * 8)


@pytest.mark.parametrize(
    ("x", "line"),
    [
        (torch.zeros(1, 4, 4, 3).double(), "x must be uint8 or float16 or float32 "),
        (torch.zeros(1, 4, 4, 3).bfloat16(), "x must be uint8 or float16 or float32 "),
        (torch.zeros(1, 4, 4, 4), r"x must be .*\(any, any, any, 3\)"),
        (torch.zeros(1, 3, 4, 4), "x must be"),
        (torch.zeros(4, 4, 3), "x must be"),
        (torch.zeros(1, 0, 4, 3), "x must be"),
        (torch.zeros(0, 4, 4, 1), "x must be"),
        (torch.zeros(1, 3, 4, 4).permute(0, 2, 3, 1), "x is not contiguous"),
        (torch.zeros(1, 30000, 30000, 3, device="meta"), "x has 2700000000 elements"),
        (None, "x must be a tensor, got NoneType"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(x: Any, line: str) -> None:
    with pytest.raises(InputError, match=f"^sobel: {line}") as caught:
        sobel(x)
    assert "\n" not in str(caught.value)


def test_gradients_too_many_for_the_offsets_are_refused() -> None:
    x = torch.empty(1, 32768, 32768, 1, device="meta")
    with pytest.raises(InputError, match=r"^sobel: x has 1073741824 pixels, .*2\^31 - 1") as caught:
        sobel(x, gradients=True)
    assert "\n" not in str(caught.value)
    assert sobel(x[:, 1:].contiguous(), gradients=True).numel() == 2**31 - 2**16
    assert sobel(x).numel() == 2**30


@pytest.mark.parametrize("bad", [1, None, torch.ones(2)])
def test_gradients_must_be_a_bool(bad: Any) -> None:
    with pytest.raises(InputError, match=r"^sobel: gradients must be a bool, got \w+$"):
        sobel(torch.zeros(1, 4, 4, 3), bad)
