"""Draw what was written down: how costs grow, and where the time of a start goes; measures nothing.

Needs matplotlib (the extra `bench`); without it there are no pictures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.results import FOLDER, read_results

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CURVES = {"starts": "ports", "growth": "endpoints"}
COLORS = {"engine": "#9aa5b1", "libnetwork": "#d9a441", "pynet": "#3b7dd8", "inside": "#7fb2f0"}


def draw_pictures() -> list[Path]:
    """Draw what there is; return the files."""
    try:
        import matplotlib as mpl  # noqa: PLC0415 - an extra
    except ModuleNotFoundError:
        return []
    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "pynet", "font.size": 9})
    return list(_draw_all())


def _draw_all() -> Iterator[Path]:
    for family, name in CURVES.items():
        for title, curves in _read(family).get("curves", {}).items():
            yield _draw_curves(title, curves, name)
    for title, spans in _read("profile").get("spans", {}).items():
        yield _draw_waterfall(title, spans)


def _read(family: str) -> dict[str, Any]:
    try:
        return read_results(family)
    except FileNotFoundError:
        return {}


def _draw_curves(title: str, curves: list[dict[str, Any]], name: str) -> Path:
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(6.4, 3.6))
    for curve in curves:
        at = sorted(map(int, curve["points"]))
        values = [curve["points"][str(number)]["median"] for number in at]
        axes.plot(at, values, marker="o", label=curve["of"])
    axes.set(xscale="log", yscale="log", xlabel=name, ylabel=curves[0]["unit"], title=title)
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.legend()
    return _save(figure, name)


def _draw_waterfall(title: str, spans: list[tuple[str, float, float, int, str]]) -> Path:
    """Draw a bar for each span: what, from, for how long, in milliseconds; depth; whose it is."""
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(8.4, 0.19 * len(spans) + 1.2))
    for line, (name, begin, length, depth, whose) in enumerate(spans):
        axes.barh(line, length, left=begin, height=0.72, color=COLORS[whose])
        text = f"{'    ' * depth}{name}  {length:.1f} ms"
        axes.text(begin + length, line, f"  {text.strip()}", va="center", fontsize=7)
    axes.invert_yaxis()
    axes.set(yticks=[], xlabel="ms", title=title)
    axes.margins(x=0.25)
    axes.set_xlim(left=0)
    for whose, color in COLORS.items():
        axes.barh(0, 0, color=color, label=whose)
    axes.legend(loc="lower left")
    return _save(figure, f"waterfall-{title.rpartition(' ')[2].strip('()')}")


def _save(figure: Any, name: str) -> Path:
    from matplotlib import pyplot as plt  # noqa: PLC0415

    path = FOLDER / f"{name}.svg"
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    return path
