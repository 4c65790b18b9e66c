"""Stacked bars of agreement: chance, image and place, one bar per variant or block."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vmoe_prc.evaluation.decomposition import Decomposition
from vmoe_prc.figures.panels import plain_text, supertitle

PARTS = {
    "chance": "chance, given the loads",
    "image": "image: which experts the image uses",
    "place": "place: which expert a patch goes to",
}
_COLORS = {"chance": "#BBBBBB", "image": "#E69F00", "place": "#0072B2"}
_DARK_TEXT = {"chance", "image"}


@dataclasses.dataclass(frozen=True)
class AgreementBar:
    """One bar; parts are shares in [0, 1] whose sum is the agreement.

    Attributes:
      label: Name of the variant or block.
      chance: See `evaluation.decomposition`.
      image: Likewise.
      place: Likewise; negative where the views agree less than shuffled patches.
      kappa: Agreement corrected for chance.
      kappa_place: Agreement corrected for pairing within images.
      kappa_place_interval: Its interval, None if unknown.
    """

    label: str
    chance: float
    image: float
    place: float
    kappa: float
    kappa_place: float
    kappa_place_interval: tuple[float, float] | None = None


def mean_bar(label: str, runs: Sequence[Mapping[str, Any]]) -> AgreementBar:
    """Returns the bar of the mean of runs, which have the fields of `Decomposition`."""
    means: dict[str, Any] = {
        f: float(np.mean([run[f] for run in runs])) for f in Decomposition._fields
    }
    return AgreementBar(label, **means)


def agreement_figure(bars: Sequence[AgreementBar], *, title: str = "") -> Figure:
    """Draws agreement in parts, with kappa and kappa_place at the right of each bar.

    Args:
      bars: The bars, from top to bottom.
      title: Its title.
    """
    figure = Figure(figsize=(8.6, 1.35 + 0.36 * len(bars)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for y, bar in enumerate(bars):
        _draw_bar(axes, y, bar)
    axes.set_yticks(range(len(bars)), [plain_text(bar.label, 2.5, 8) for bar in bars], fontsize=8)
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.set_xlim(min(0.0, *(100 * (bar.chance + bar.image + bar.place) for bar in bars)), 100)
    axes.set_xlabel("agreement of matched patches (%)", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.text(1.02, 1.0, "kappa", transform=axes.transAxes, fontsize=8, weight="bold")
    axes.text(1.12, 1.0, "kappa place", transform=axes.transAxes, fontsize=8, weight="bold")
    handles = [axes.barh(0, 0, color=_COLORS[part], label=text) for part, text in PARTS.items()]
    figure.legend(handles=handles, loc="outside lower left", ncols=3, frameon=False, fontsize=8)
    if title:
        supertitle(figure, title, 10, x=0.01, ha="left")
    return figure


def _draw_bar(axes: Axes, y: int, bar: AgreementBar) -> None:
    left = 0.0
    for part in PARTS:
        width = 100 * getattr(bar, part)
        if not np.isfinite(width):
            axes.text(1, y, "not defined", va="center", fontsize=8)
            return
        axes.barh(y, width, left=left, color=_COLORS[part], height=0.7)
        if abs(width) >= 3:
            color = "0.1" if part in _DARK_TEXT else "white"
            middle = left + width / 2
            axes.text(middle, y, f"{width:.1f}", ha="center", va="center", fontsize=7, color=color)
        left += width
    kappa_place = f"{100 * bar.kappa_place:.1f}"
    if bar.kappa_place_interval is not None:
        low, high = bar.kappa_place_interval
        kappa_place += f" [{100 * low:.1f}, {100 * high:.1f}]"
    transform = axes.get_yaxis_transform()
    axes.text(1.02, y, f"{100 * bar.kappa:.1f}", transform=transform, va="center", fontsize=8)
    axes.text(1.12, y, kappa_place, transform=transform, va="center", fontsize=8)
