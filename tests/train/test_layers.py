"""The building blocks against their written-out form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from fastrestore.train.layers import EdgeConv, ResidualBlock

SOBEL_X = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=torch.float64) / 8
LAPLACE = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=torch.float64) / 4


def branches(layer: EdgeConv, x: Tensor) -> Tensor:
    """3x3 plus three branches of 1x1, fixed filter and scale, each a layer of its own."""
    conv = layer.conv
    d = conv.dilation[0]
    y = F.conv2d(x, conv.weight, conv.bias, padding=d, dilation=d)
    for mix, scale, kernel in zip(
        layer.mix, layer.scale, (SOBEL_X, SOBEL_X.T, LAPLACE), strict=True
    ):
        mixed = F.conv2d(x, mix[:, :, None, None])
        kernels = kernel.expand(len(mix), 1, 3, 3)
        y = y + scale.view(1, -1, 1, 1) * F.conv2d(
            mixed, kernels, padding=d, dilation=d, groups=len(mix)
        )
    return y


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(3)
    return torch.randn(2, 5, 11, 9, dtype=torch.float64)


@pytest.mark.parametrize("dilation", [1, 2, 4, 8])
def test_edge_conv_is_its_branches_up_to_the_border(x: Tensor, dilation: int) -> None:
    layer = EdgeConv(5, 7, dilation).double()
    with torch.no_grad():
        layer.scale.normal_()
    torch.testing.assert_close(layer(x), branches(layer, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dilation", [1, 2, 4])
def test_edge_conv_fuses_exactly_and_loses_its_branches(x: Tensor, dilation: int) -> None:
    layer = EdgeConv(5, 7, dilation).double()
    before = layer(x)
    layer.fuse()
    assert torch.equal(layer(x), before)
    assert torch.equal(
        F.conv2d(x, layer.conv.weight, layer.conv.bias, padding=dilation, dilation=dilation), before
    )
    assert set(layer.state_dict()) == {"conv.weight", "conv.bias"}
    layer.fuse()  # a second time changes nothing
    assert torch.equal(layer(x), before)


def test_branches_learn(x: Tensor) -> None:
    layer = EdgeConv(5, 7).double()
    layer(x).square().sum().backward()
    for p in (layer.conv.weight, layer.mix, layer.scale):
        assert p.grad is not None
        assert p.grad.abs().min() > 0


def test_plain_layer_has_no_branches(x: Tensor) -> None:
    layer = EdgeConv(5, 7, edge=False).double()
    assert set(layer.state_dict()) == {"conv.weight", "conv.bias"}
    assert torch.equal(layer(x), layer.conv(x))


@pytest.mark.parametrize("dilation", [1, 2])
def test_residual_block_is_its_formula(x: Tensor, dilation: int) -> None:
    block = ResidualBlock(5, dilation).double()
    w3, b3 = block.conv3.weight(), block.conv3.conv.bias
    w1, b1 = block.conv1.weight, block.conv1.bias
    hidden = F.conv2d(x, w3, b3, padding=dilation, dilation=dilation).clamp(min=0)
    torch.testing.assert_close(block(x), x + F.conv2d(hidden, w1, b1), rtol=0, atol=1e-12)


def test_block_without_edge_conv_has_plain_kernels_only() -> None:
    block = ResidualBlock(5, 2, "plain-conv")
    names = {"conv3.conv.weight", "conv3.conv.bias", "conv1.weight", "conv1.bias"}
    assert set(block.state_dict()) == names
    assert set(ResidualBlock(5, 2).state_dict()) == {*names, "conv3.mix", "conv3.scale"}


def test_block_33_replaces_the_1x1(x: Tensor) -> None:
    block = ResidualBlock(5, 2, "block-33").double()
    hidden = block.conv3(x).clamp(min=0)
    w, b = block.conv1.weight, block.conv1.bias
    assert w.shape == (5, 5, 3, 3)
    torch.testing.assert_close(block(x), x + F.conv2d(hidden, w, b, padding=1), rtol=0, atol=1e-12)


def test_leaky_block_lets_a_tenth_through(x: Tensor) -> None:
    block = ResidualBlock(5, 1, "leaky-relu").double()
    h = block.conv3(x)
    hidden = torch.where(h > 0, h, 0.1 * h)
    assert (h < 0).any()
    w, b = block.conv1.weight, block.conv1.bias
    torch.testing.assert_close(block(x), x + F.conv2d(hidden, w, b), rtol=0, atol=1e-12)


@pytest.mark.parametrize("ablate", ["", "zero-fill", "no-sobel"])
def test_what_is_left_out_of_the_input_leaves_the_block_alone(x: Tensor, ablate: str) -> None:
    block, plain = ResidualBlock(5, 1, ablate).double(), ResidualBlock(5, 1).double()
    plain.load_state_dict(block.state_dict())
    assert torch.equal(block(x), plain(x))
