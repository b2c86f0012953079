"""The generator's building blocks: EdgeConv and the residual block."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the name every torch reader expects

_SOBEL = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
_LAPLACE = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]) / 4


class EdgeConv(nn.Module):
    """3x3 convolution with Sobel-x, Sobel-y and Laplacian branches that fuse into it exactly.

    Branch k adds `scale_k[o] * D_k * (mix_k x)[o]` with a fixed filter D_k, so the whole layer is
    one 3x3 convolution `W = W3 + sum_k scale_k[o] * mix_k[o, i] * D_k`. The branches have no bias
    and padding is zero, hence borders are exact too. In training the kernel is formed on the fly:
    a step costs one convolution.

    Source: edge-oriented re-parameterisation (ECBSR, ACM Multimedia 2021), without its biases.
    """

    filters: Tensor

    def __init__(self, cin: int, cout: int, dilation: int = 1, edge: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, 3, padding=dilation, dilation=dilation)
        self.edge = edge
        if edge:
            filters = torch.stack([_SOBEL, _SOBEL.T, _LAPLACE])
            self.register_buffer("filters", filters, persistent=False)
            self.mix = nn.Parameter(torch.randn(3, cout, cin) * cin**-0.5)
            self.scale = nn.Parameter(torch.full((3, cout), 0.1))

    def weight(self) -> Tensor:
        """Return the fused kernel, `(cout, cin, 3, 3)`."""
        if not self.edge:
            return self.conv.weight
        branches = torch.einsum("ko,koi,kab->oiab", self.scale, self.mix, self.filters)
        return self.conv.weight + branches

    def forward(self, x: Tensor) -> Tensor:
        """`(N, cin, H, W)` -> `(N, cout, H, W)`."""
        c = self.conv
        return F.conv2d(x, self.weight(), c.bias, c.stride, c.padding, c.dilation)

    @torch.no_grad()
    def fuse(self) -> None:
        """Fold the branches into the 3x3 kernel and drop them."""
        if self.edge:
            self.conv.weight.copy_(self.weight())
            self.edge = False
            del self.mix, self.scale, self.filters


class ResidualBlock(nn.Module):
    """`y = x + W1 * relu(W3_d * x + b3) + b1`: dilated 3x3, then 1x1, same width throughout.

    `ablate` replaces one part, for comparisons: `plain-conv` the EdgeConv, `block-33` the 1x1 by a
    3x3, `leaky-relu` the activation (slope 0.1).
    """

    def __init__(self, width: int, dilation: int = 1, ablate: str = "") -> None:
        super().__init__()
        self.conv3 = EdgeConv(width, width, dilation, edge=ablate != "plain-conv")
        side = 3 if ablate == "block-33" else 1
        self.conv1 = nn.Conv2d(width, width, side, padding=side // 2)
        self.slope = 0.1 if ablate == "leaky-relu" else 0.0

    def forward(self, x: Tensor) -> Tensor:
        """`(N, width, H, W)` -> the same shape."""
        h = self.conv3(x)
        h = F.leaky_relu(h, self.slope) if self.slope else F.relu(h)
        y: Tensor = x + self.conv1(h)
        return y
