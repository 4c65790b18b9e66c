"""Figures of the swap test, of ramps of noise, and of capacity."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vmoe_prc.analysis.information import shares_of_entropy
from vmoe_prc.analysis.ramp import RampResult
from vmoe_prc.analysis.swap import CLEAN, NOISY, SwapResult
from vmoe_prc.figures.palette import line_styles
from vmoe_prc.figures.panels import shorten, supertitle


def swap_figure(found: SwapResult, *, title: str = "") -> Figure:
    """Draws accuracy and likelihood minus those with the own routing, with 95% intervals."""
    table = found.routings
    figure = Figure(figsize=(10, 1.3 + 0.32 * len(table)), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    own = table.set_index(["images", "routing"])["accuracy"]
    for axes, metric, scale, unit in zip(
        panels, ("accuracy", "nll"), (100, 1), ("accuracy (points)", "NLL (nats)"), strict=True
    ):
        axes.axvline(0, color="0.6", lw=1)
        for y, row in enumerate(table.itertuples()):
            color = "tab:blue" if row.images == "clean" else "tab:orange"
            change = f"{metric}_change"
            bounds = [getattr(row, f"{change}_low"), getattr(row, f"{change}_high")]
            axes.hlines(y, *(scale * bound for bound in bounds), color=color, lw=1.4)
            axes.plot(scale * getattr(row, change), y, "o", ms=4, color=color)
        axes.set_xlabel(f"change of {unit}", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right", "left"]].set_visible(False)
    names = {"clean": CLEAN, "noisy": NOISY}
    labels = [
        f"{images} images: {names[images][routing]}"
        for images, routing in zip(table["images"], table["routing"], strict=True)
    ]
    panels[0].set_yticks(range(len(table)), labels)
    panels[0].set_ylim(len(table) - 0.5, -0.5)
    accuracies = f"accuracy {own['clean', 'own']:.1%} clean, {own['noisy', 'own']:.1%} noisy"
    supertitle(figure, f"{shorten(title, 60)}: {accuracies}" if title else accuracies, 9)
    return figure


def ramp_figure(found: RampResult, *, title: str = "") -> Figure:
    """Draws the probability along a ramp, and steps and drops by position in the group."""
    figure = Figure(figsize=(12, 3.3), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    curve, variation, dropped = figure.subplots(1, 3, width_ratios=(1.5, 1, 1))
    capacities = list(found.capacities["capacity"])
    for capacity, style in zip(capacities, line_styles(len(capacities)), strict=True):
        line = {"color": style.color, "lw": 1.2, "label": capacity}
        marked = {**line, "marker": style.marker, "ms": 3}
        part = found.curves[found.curves["capacity"] == capacity]
        curve.plot(part["level"], part["probability"], **line)
        part = found.positions[found.positions["capacity"] == capacity]
        variation.plot(part["position"], part["total_variation"], **marked)
        dropped.plot(part["position"], 100 * part["dropped"], **marked)
    _label(curve, "noise (standard deviation, pixel range 1)", "probability, first image")
    _label(variation, "position of the image in its group", "total variation of the step to it")
    _label(dropped, "position of the image in its group", "dropped choices (%)")
    variation.set_yscale("log")
    curve.legend(title="capacity factor", frameon=False, fontsize=8, title_fontsize=8)
    if title:
        supertitle(figure, title, 10)
    return figure


def capacity_figure(table: pd.DataFrame, *, title: str = "") -> Figure:
    """Draws accuracy and drops against the capacity factor; see `drop_curve`."""
    figure = Figure(figsize=(9, 3.2), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    accuracy, dropped = figure.subplots(1, 2)
    priorities = list(table["batch_priority"].unique())
    for priority, style in zip(priorities, line_styles(len(priorities)), strict=True):
        part = table[(table["batch_priority"] == priority) & table["capacity"].notna()]
        line = {"color": style.color, "marker": style.marker, "ms": 4}
        label = "batch priority" if priority else "first come, first served"
        accuracy.plot(part["capacity"], 100 * part["accuracy"], label=label, **line)
        dropped.plot(part["capacity"], 100 * part["dropped"], label=label, **line)
    unlimited = table[table["capacity"].isna()]
    if len(unlimited):
        accuracy.axhline(
            100 * unlimited["accuracy"].iloc[0], color="0.4", ls="--", label="dropless"
        )
    _label(accuracy, "capacity factor", "accuracy (%)")
    _label(dropped, "capacity factor", "dropped choices (%)")
    accuracy.legend(frameon=False, fontsize=8)
    if title:
        supertitle(figure, title, 10)
    return figure


def information_figure(table: pd.DataFrame, *, title: str = "") -> Figure:
    """Draws what first experts tell, as a share of their entropy, and experts per image."""
    figure = Figure(figsize=(9, 3.2), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    shares, numbers = figure.subplots(1, 2, width_ratios=(2, 1))
    position = range(len(table))
    known = shares_of_entropy(table)
    width = 0.8 / len(known)
    for i, ((name, values), style) in enumerate(
        zip(known.items(), line_styles(len(known)), strict=True)
    ):
        left = [x - 0.4 + (i + 0.5) * width for x in position]
        label = name.replace("_", " ")
        shares.bar(left, 100 * values.fillna(0), width, color=style.color, label=label)
    for offset, name in ((-0.2, "experts_in_use"), (0.2, "experts_per_image")):
        left = [x + offset for x in position]
        color = "0.7" if name == "experts_in_use" else "0.3"
        numbers.bar(left, table[name], 0.4, color=color, label=name.replace("_", " "))
    for axes, text in (
        (shares, "mutual information (% of the entropy of e)"),
        (numbers, "experts (exp of entropy)"),
    ):
        _label(axes, "", text)
        axes.set_xticks(position, table["block"], fontsize=8)
        axes.legend(frameon=False, fontsize=8)
    if title:
        supertitle(figure, title, 10)
    return figure


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
