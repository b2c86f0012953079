"""The paper's figure 2: quality over the occlusion ratio, a column a family, as PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from fastrestore.contenders import GIVEN, WITHHELD
from fastrestore.errors import InputError, need
from fastrestore.reporting import Result

PANELS = {  # metric -> axis
    "psnr": "PSNR of the composite, dB",
    "ssim": "SSIM",
    "lpips": "LPIPS (AlexNet), less is better",
}
TITLES = {
    "freeform": "free-form",
    "rects": "rectangles",
    "grid": "lost blocks, 16 px",
    "thin": "scratches, 1-5 px",
    "files": "given masks",
}
# Okabe and Ito's colours, which the colour-blind can tell apart; yellow is too pale for a line.
OURS = ("#0072B2", "#D55E00", "#CC79A7", "#5D3A9B", "#40B0A6")
OTHERS = ("#009E73", "#E69F00", "#56B4E9", "#000000", "#8C6D31", "#7F7F7F")
_MARKS = "osD^vPX*"
_DPI = 150


def curve(results: Sequence[Result], ours: Sequence[str], caption: str = "") -> bytes:
    """Draw the curve with 95 % bands.

    Args:
        results: Of `reporting.summarise_cases`; cases of one ratio that are no curve are skipped.
        ours: Names of our methods: strong lines, and withheld masks dashed.
        caption: Below the figure.

    Returns:
        A PNG file.

    Raises:
        InputError: There is no curve to draw.
        MissingExtraError: matplotlib is not installed.
    """
    families = [f for f in TITLES if any(r.family == f for r in results)]
    shown = [r for r in results if r.family in families and r.variant in (GIVEN, WITHHELD)]
    shown = [r for r in shown if r.method != "input"]
    if not shown:
        raise InputError("figure: no case with holes was measured; there is no curve to draw")
    metrics = [m for m in PANELS if any(m in r.mean for r in shown)]
    backend = need("matplotlib.backends.backend_agg", "evaluate")
    figure = need("matplotlib.figure", "evaluate").Figure(
        figsize=(max(6.4, 3.1 * len(families) + 0.9), 2.75 * len(metrics) + 1.1), dpi=_DPI
    )
    backend.FigureCanvasAgg(figure)
    axes = figure.subplots(len(metrics), len(families), sharey="row", squeeze=False)
    styles = _styles(shown, ours)
    for row, metric in enumerate(metrics):
        for column, family in enumerate(families):
            _panel(axes[row][column], shown, family, metric, styles)
            if column == 0:
                axes[row][column].set_ylabel(PANELS[metric])
            if row == 0:
                axes[row][column].set_title(TITLES[family], fontsize=11)
            if row == len(metrics) - 1:
                axes[row][column].set_xlabel("hole, % of the picture")
    _legend(figure, axes, caption)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _styles(shown: Sequence[Result], ours: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Give every title its colour, mark and dash; the same in every panel."""
    styles: dict[str, dict[str, Any]] = {}
    others = 0
    for r in sorted(shown, key=lambda r: (r.method not in ours, r.variant)):
        if r.title in styles:
            continue
        if r.method in ours:
            colour = OURS[list(ours).index(r.method) % len(OURS)]
            dash = "--" if r.variant == WITHHELD else "-"
            mark = "o" if r.variant == GIVEN else "s"
            styles[r.title] = {"color": colour, "linestyle": dash, "marker": mark, "linewidth": 2}
        else:
            styles[r.title] = {
                "color": OTHERS[others % len(OTHERS)],
                "linestyle": "-" if others < len(OTHERS) else ":",
                "marker": _MARKS[1 + others % (len(_MARKS) - 1)],
                "linewidth": 1.3,
            }
            others += 1
    return styles


def _panel(
    axis: Any, shown: Sequence[Result], family: str, metric: str, styles: dict[str, dict[str, Any]]
) -> None:
    # Ours last, so that it lies on top.
    for title, style in reversed(styles.items()):
        points = sorted(
            (100 * r.share[0], r.mean[metric])
            for r in shown
            if r.family == family and r.title == title and metric in r.mean
        )
        if not points:
            continue
        x = [p[0] for p in points]
        mean, low, high = zip(*(p[1] for p in points), strict=True)
        axis.fill_between(x, low, high, color=style["color"], alpha=0.16, linewidth=0)
        axis.plot(x, mean, label=title, markersize=4.5, **style)
    axis.grid(color="#DDDDDD", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.set_xlim(left=0)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _legend(figure: Any, axes: Any, caption: str) -> None:
    """One legend and the caption for all panels, below them."""
    handles: dict[str, Any] = {}
    for axis in axes.flat:
        for handle, title in zip(*axis.get_legend_handles_labels(), strict=True):
            handles[title] = handle
    titles = list(reversed(handles))
    columns = min(len(titles), max(2, 2 * len(axes[0])))
    rows = -(-len(titles) // columns)
    height = figure.get_size_inches()[1]
    below = (0.3 * rows + 0.45) / height
    figure.tight_layout(rect=(0, below, 1, 1))
    figure.legend(
        [handles[t] for t in titles],
        titles,
        loc="lower center",
        bbox_to_anchor=(0.5, 0.28 / height),
        ncols=columns,
        frameon=False,
        fontsize=9,
    )
    figure.text(0.5, 0.1 / height, caption, ha="center", fontsize=8, color="#444444")
