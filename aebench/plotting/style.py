"""The look of every figure: page widths, palette, marks of measured, paper and absent points."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from matplotlib.artist import Artist
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import Normal, Stroke

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

PAGE_WIDTH = 7.0  # inches: two print columns
NARROW_WIDTH = 5.2
FONT_SIZE = 7.0
SMALL = 6.3

# Paul Tol's "muted" scheme, ordered so that neighbours differ in lightness as well as in hue.
PALETTE = ("#332288", "#88CCEE", "#117733", "#DDCC77", "#CC6677", "#44AA99", "#882255", "#999933", "#AA4499")
LONE_COLOR = "#4477AA"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
"""Shapes of series on lines, beside ``PALETTE``: series are told apart in grey too."""
INK = "#1a1a1a"
FAINT = "#8a8a8a"
GRID = "#e3e3e3"
HISTORY_HATCH = "/////"
HALO = [Stroke(linewidth=1.9, foreground="white"), Normal()]
"""Makes a line or a text over other things readable."""
TEXT_LUMINANCE = 0.18
"""Relative luminance (WCAG 2.1) up to which a colour can be read as text on white: a contrast of 4.5."""

RC: "dict[RcKeyType, Any]" = {
    "font.family": "DejaVu Sans",
    "font.size": FONT_SIZE,
    "axes.titlesize": FONT_SIZE + 0.5,
    "axes.titleweight": "bold",
    "axes.labelsize": FONT_SIZE,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "xtick.major.size": 0,
    "ytick.major.size": 2,
    "ytick.major.width": 0.6,
    "hatch.linewidth": 0.5,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "text.parse_math": False,  # a dollar sign in a label is a dollar sign
    "pdf.fonttype": 42,
    "svg.fonttype": "path",  # the same glyphs in every browser, with no font to ship
    "svg.hashsalt": "aebench",
}

PAPER_MARK: dict[str, Any] = {
    "linestyle": "none",
    "marker": "o",
    "markersize": 3.4,
    "markerfacecolor": "white",
    "markeredgecolor": INK,
    "markeredgewidth": 0.8,
}
CALIBRATED_MARK: dict[str, Any] = {**PAPER_MARK, "marker": "s"}
ORIENTATION_BAR: dict[str, Any] = {"facecolor": "white", "linewidth": 0.7, "linestyle": (0, (3, 1.5))}
ABSENT_MARK: dict[str, Any] = {
    "linestyle": "none",
    "marker": "x",
    "markersize": 3.0,
    "markeredgecolor": FAINT,
    "markeredgewidth": 0.8,
}


MEASURED_LINE: dict[str, Any] = {"linestyle": "-", "linewidth": 1.2}
HISTORY_LINE: dict[str, Any] = {"linestyle": (0, (1, 1.2)), "linewidth": 1.0}
PAPER_LINE: dict[str, Any] = {"linestyle": (0, (4, 2)), "linewidth": 0.7}
POINT: dict[str, Any] = {"linestyle": "none", "markersize": 4.8, "markeredgewidth": 0.8, "clip_on": False}
"""A point of a line; a paper's is hollow and smaller, so that neither hides the other; one from shipped history is half
filled."""
CALIBRATED_FRAME: dict[str, Any] = {**CALIBRATED_MARK, "markersize": 7.0, "markerfacecolor": "none"}
"""Around a paper's point of a line, whose shape says which series it is of."""
WHISKER: dict[str, Any] = {"elinewidth": 0.7, "capsize": 1.6, "capthick": 0.7, "ecolor": INK}


def text_color(color: str) -> str:
    """The colour, as dark as it must be to write with it."""
    red, green, blue = to_rgb(color)
    shades = ((red * share, green * share, blue * share) for share in (1 - step / 20 for step in range(20)))
    return next(to_hex(shade) for shade in shades if _luminance(shade) <= TEXT_LUMINANCE)


def _luminance(rgb: Sequence[float]) -> float:
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in rgb)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def measured_point(color: str, marker: str) -> dict[str, Any]:
    """Look of a measured point of a line."""
    return {**POINT, "marker": marker, "markerfacecolor": color, "markeredgecolor": color}


def history_point(color: str, marker: str) -> dict[str, Any]:
    """Look of a point of a line that was filled in from a shipped log."""
    return {**measured_point(color, marker), "fillstyle": "left", "markerfacecoloralt": "white"}


def paper_point(color: str, marker: str) -> dict[str, Any]:
    """Look of the paper's point beside a line."""
    return {**measured_point(color, marker), "markersize": 3.4, "markerfacecolor": "white"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One legend entry."""

    handle: Artist
    label: str


def patch(color: str, label: str) -> Entry:
    """Legend entry of a series."""
    return Entry(handle=Patch(facecolor=color, edgecolor=INK, linewidth=0.4), label=label)


def history_patch() -> Entry:
    """Legend entry of bars filled in from a shipped log."""
    handle = Patch(facecolor="white", edgecolor=INK, hatch=HISTORY_HATCH, linewidth=0.6)
    return Entry(handle=handle, label="from shipped history")


def orientation_patch(label: str) -> Entry:
    """Legend entry of a paper's bars that stand beside the measured ones."""
    return Entry(handle=Patch(edgecolor=INK, **ORIENTATION_BAR), label=label)


def framed(look: dict[str, Any], label: str) -> Entry:
    """Legend entry of a frame."""
    return Entry(handle=Patch(**look), label=label)


def mark(look: dict[str, Any], label: str) -> Entry:
    """Legend entry of a marker."""
    return Entry(handle=Line2D([], [], **look), label=label)


def legend(canvas: Canvas, series: Sequence[Entry], marks: Sequence[Entry]) -> None:
    """One legend above the panels, read row by row: the series first, the marks on a row of their own."""
    if not series and not marks:
        return
    widest = max(len(series), len(marks))
    columns = next((count for count in range(widest, 1, -1) if _fits(canvas, series, marks, count)), 1)
    rows = [*_rows(series, columns), *_rows(marks, columns)]
    by_column = [row[column] for column in range(columns) for row in rows]  # matplotlib fills columns first
    canvas.legend(
        [entry.handle for entry in by_column],
        [entry.label for entry in by_column],
        loc="outside upper center",
        ncols=columns,
        handlelength=1.6,
        handleheight=0.9,
        columnspacing=1.1,
        borderaxespad=0.2,
    )


def caption(canvas: Canvas, text: str) -> None:
    """A caption line under the panels, wrapped to the figure's width."""
    if text:
        columns = int(canvas.get_figwidth() * 72 / (SMALL * 0.56))
        wrapped = textwrap.fill(text, columns)
        canvas.supxlabel(wrapped, x=0.01, ha="left", fontsize=SMALL, color="#444444", linespacing=1.35)


def tick_labels(labels: Sequence[str], slot: float) -> list[str]:
    """The labels, each broken at its first hyphen or space when one is too wide for ``slot`` inches."""
    if all(text_width(label) <= slot * 0.95 for label in labels):
        return list(labels)
    return [label.replace("-", "\n", 1) if "-" in label else label.replace(" ", "\n", 1) for label in labels]


def text_width(text: str, size: float = FONT_SIZE) -> float:
    """Width of a text in inches, estimated; DejaVu's mean glyph is 0.57 em."""
    return len(text) * size * 0.57 / 72


def _rows(entries: Sequence[Entry], columns: int) -> list[list[Entry]]:
    """Entries in rows of ``columns``, the last filled up with blanks."""
    blank = Entry(handle=Line2D([], [], linestyle="none"), label="")
    filled = [*entries, *[blank] * (-len(entries) % columns)]
    return [filled[start : start + columns] for start in range(0, len(filled), columns)]


def _fits(canvas: Canvas, series: Sequence[Entry], marks: Sequence[Entry], columns: int) -> bool:
    rows = [*_rows(series, columns), *_rows(marks, columns)]
    texts = sum(max(text_width(row[column].label, SMALL) for row in rows) for column in range(columns))
    handles = columns * 3.1 * SMALL / 72
    return texts + handles <= canvas.get_figwidth() * 0.98
