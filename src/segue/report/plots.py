"""The plots of a report: SVG whose inks are the page's CSS variables, so that they follow light and dark."""

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from segue.data.sample import Array, Color
from segue.records import BASELINE
from segue.report.arm import Arm

FEW = 12  # points of a curve that are marked one by one
NO_LOSS = {"stage", "step", "loss", "gradient_norm", "norm", "lr", "seconds", "refused", "reward1", "reward2", "best"}
# Matplotlib wants colours that it knows: these stand for CSS variables, and are replaced in the finished SVG.
INKS = {f"#01020{i}": f"var(--{name})" for i, name in enumerate(("ink", "line", "paper", "method", "baseline"))}
INK, LINE, PAPER, METHOD_INK, BASELINE_INK = INKS
STROKES = {"method": (METHOD_INK, "-", "o"), BASELINE: (BASELINE_INK, "--", "s")}
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "segue",
    "text.parse_math": False,  # a class may be called $x$
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": LINE,
    "grid.linewidth": 0.5,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}


def svg(paint: Callable[[Any], None], *, height: float = 2.8) -> str:
    """What ``paint`` draws on the axes it is given, as an SVG element; height in inches."""
    import matplotlib
    from markupsafe import Markup
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # glyphs that matplotlib's font lacks: the browser has them
        figure = Figure(figsize=(3.8, height), layout="constrained", facecolor="none")
        paint(figure.subplots())
        figure.savefig(buffer, format="svg", dpi=160)
    text = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue().decode(), flags=re.DOTALL)
    head, tail = text[text.index("<svg") :].split(">", 1)
    text = re.sub(r' (width|height)="[^"]*"', "", head) + ">" + tail  # its box alone: the page gives the width
    for ink, variable in INKS.items():
        text = text.replace(ink, variable)
    return Markup(text)  # noqa: S704  matplotlib has escaped the names in it


def curves(arms: Sequence[Arm]) -> list[tuple[str, str]]:
    """(title, SVG) of each named loss, and of the validation mIoU where it was logged, over the steps of each arm."""
    names = [name for arm in arms for line in arm.log for name in line if name not in NO_LOSS and "/" not in name]
    traces = [*dict.fromkeys(names), "val/miou"]
    last = max((start + steps for arm in arms for start, steps in arm.stages().values()), default=1)

    def panel(name: str) -> Callable[[Any], None]:
        def paint(axes: Any) -> None:
            for arm in arms:
                color, line, marker = STROKES[arm.key]
                for i, stage in enumerate(arm.trace(name)):
                    steps, values = zip(*stage, strict=True)
                    scaled = [100 * value for value in values] if name == "val/miou" else values
                    few = marker if len(steps) < FEW else ""
                    label = arm.title if i == 0 else None
                    axes.plot(steps, scaled, line, color=color, marker=few, markersize=3, label=label)
            for start, _ in arms[0].stages().values():
                if start:
                    axes.axvline(start, color=INK, linewidth=0.8, linestyle=":")
            axes.set(xlabel="step", xlim=(0, 1.02 * last), ylabel="mIoU (%)" if name == "val/miou" else "loss")
            axes.legend(loc="best")

        return paint

    shown = [name for name in traces if any(arm.trace(name) for arm in arms)]
    return [("validation mIoU" if name == "val/miou" else name.replace("_", " "), svg(panel(name))) for name in shown]


def reliability(arms: Sequence[Arm]) -> str:
    """Accuracy over predicted probability, one point a bin; its area is the share of pixels."""

    def paint(axes: Any) -> None:
        axes.plot([0, 100], [0, 100], color=INK, linewidth=0.8, linestyle=":")
        for arm in arms:
            color, line, marker = STROKES[arm.key]
            bins = {name: np.array(values) for name, values in arm.evaluation["calibration"].items()}
            filled = bins["count"] > 0
            total = bins["count"][filled]
            x, y = 100 * bins["probability"][filled] / total, 100 * bins["right"][filled] / total
            axes.plot(x, y, line, color=color, linewidth=1, marker=marker, markersize=3, label=arm.title)
            area = 400 * total / max(total.sum(), 1)
            axes.scatter(x, y, s=area, color=color, marker=marker, alpha=0.35, linewidths=0)
        axes.set(xlabel="predicted probability (%)", ylabel="right (%)", xlim=(0, 105), ylim=(0, 105), aspect="equal")
        axes.legend(loc="upper left")

    return svg(paint, height=3.8)


def tsne(features: Array, labels: Array, classes: Sequence[str], colors: Sequence[Color]) -> str:
    """A t-SNE as SVG, each class named where it lies densest."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(labels) - 1) / 3)
    places = TSNE(perplexity=perplexity, init="pca", random_state=0, max_iter=500).fit_transform(features)

    def paint(axes: Any) -> None:
        rgb = np.array(colors)[labels] / 255
        axes.set_facecolor(PAPER)
        axes.scatter(*places.T, s=9, c=rgb, edgecolors="#00000066", linewidths=0.25, rasterized=True)
        box = {"boxstyle": "round,pad=0.15", "facecolor": "#ffffff", "alpha": 0.75, "linewidth": 0}
        for index in np.unique(labels):
            own = places[labels == index]
            apart = np.sort(np.linalg.norm(own[:, None] - own[None], axis=2), axis=1)[:, : len(own) // 3 + 2]
            x, y = own[apart.mean(1).argmin()]
            axes.text(x, y, classes[index], color="#111111", fontsize=9, ha="center", va="center", bbox=box)
        axes.set(xticks=[], yticks=[])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)

    return svg(paint, height=3.6)


def lines(x: str, y: str, series: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """Named curves of (x, y) points, as SVG."""

    def paint(axes: Any) -> None:
        for i, points in enumerate(series.values()):
            if points:
                along, up = zip(*points, strict=True)
                axes.plot(
                    along, up, "-", color=f"C{i}", marker="o" if len(points) < 12 else "", markersize=3, label=f"{i}"
                )
        axes.set(xlabel=x, ylabel=y)
        if len(series) > 1:
            named(axes.legend(loc="best", fontsize=8), [name for name, points in series.items() if points])

    return svg(paint)


def named(legend: Any, names: Sequence[str]) -> None:
    """Gives a legend its names: as labels of what is drawn, Matplotlib would leave out those that begin with ``_``."""
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)


MARKERS = "osD^vPX*<>"


def points_of(x: str, y: str, groups: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """Named groups of points (x, y) or (x, y, reach of x), x logarithmic, as SVG; each group with a mark of its own."""

    def paint(axes: Any) -> None:
        for i, points in enumerate(groups.values()):
            color, marker = f"C{i % 10}", MARKERS[i % len(MARKERS)]
            for along, up, *reach in points:
                if reach:
                    axes.plot([along, reach[0]], [up, up], "-", color=color, linewidth=1, alpha=0.6)
            axes.plot([p[0] for p in points], [p[1] for p in points], marker, color=color, markersize=5, label=f"{i}")
        axes.set(xlabel=x, ylabel=y, xscale="log")
        ends = [value for points in groups.values() for point in points for value in (point[0], *point[2:])]
        axes.set_xlim(min(ends) / 1.3, max(ends) * 1.3)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:g}"[0] in "25" else "")
        named(axes.figure.legend(loc="outside lower center", ncols=2, fontsize=8), list(groups))

    return svg(paint, height=2.8 + 0.16 * len(groups))


def graph(nodes: Sequence[tuple[str, float, float]], edges: Sequence[tuple[int, int]]) -> str:
    """Boxes (name, column, row) joined by arrows, as SVG; an arrow that passes a row goes round at the side."""

    def paint(axes: Any) -> None:
        columns, rows = [node[1] for node in nodes], [node[2] for node in nodes]
        for start, end in edges:
            (_, x0, y0), (_, x1, y1) = nodes[start], nodes[end]
            is_long = y1 - y0 > 1
            side = -1 if x1 < (min(columns) + max(columns)) / 2 else 1
            bend = side * min(0.5, 0.12 * (y1 - y0)) if is_long else 0.0
            axes.annotate(
                "", (x1, y1 - 0.22), (x0, y0 + 0.22),
                arrowprops={
                    "arrowstyle": "-|>", "color": INK, "linewidth": 0.8, "alpha": 0.55 if is_long else 1.0,
                    "connectionstyle": f"arc3,rad={bend}", "shrinkA": 0, "shrinkB": 0,
                },
            )  # fmt: skip
        box = {"boxstyle": "round,pad=0.3", "facecolor": PAPER, "edgecolor": LINE, "linewidth": 0.8}
        for name, column, row in nodes:
            axes.text(column, row, name, ha="center", va="center", fontsize=7, bbox=box)
        axes.set(xlim=(min(columns) - 0.75, max(columns) + 0.75), ylim=(max(rows) + 0.5, min(rows) - 0.5))
        axes.set(xticks=[], yticks=[])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)

    return svg(paint, height=0.5 * (max(node[2] for node in nodes) + 1))
