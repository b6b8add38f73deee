"""Draws a Figure from a summary as PDF, PNG and SVG; the same input gives the same bytes."""

import io
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure as Canvas

from aebench.errors import LogError, SpecError, near_misses
from aebench.figure import Cell, Figure, IsCalibrated, cells
from aebench.plotting.style import RC
from aebench.point_log import disk_error, replacing

Kind = Callable[[Figure, Sequence[Cell], str], Canvas]

# No dates: a drawn figure changes only when its input does.
FORMATS: dict[str, dict[str, Any]] = {
    "pdf": {"CreationDate": None, "ModDate": None},
    "png": {},
    "svg": {"Date": None},
}


def draw(
    figure: Figure, summary: pd.DataFrame, out_stem: Path, *, calibrated: IsCalibrated, caption: str
) -> list[Path]:
    """Paths of ``out_stem`` as .pdf, .png and .svg; all are rendered before any is written."""
    return write_canvas(_canvas_of(figure, summary, calibrated, caption), out_stem)


def draw_svg(figure: Figure, summary: pd.DataFrame, *, calibrated: IsCalibrated, caption: str) -> str:
    """The figure as an SVG document, for a page that holds it; no file is written."""
    return _rendered(_canvas_of(figure, summary, calibrated, caption), ["svg"])["svg"].decode("utf-8")


def _canvas_of(figure: Figure, summary: pd.DataFrame, calibrated: IsCalibrated, caption: str) -> Callable[[], Canvas]:
    if figure.plot.kind not in KINDS:
        known = ", ".join(sorted(KINDS))
        message = f"unknown kind {figure.plot.kind!r}.{near_misses(figure.plot.kind, KINDS)} Known: {known}"
        raise SpecError(figure.figure_id, "plot.kind", message)
    found = cells(figure, summary, calibrated)
    if not found and figure.paper_bars is None:
        raise LogError(
            f"{figure.figure_id}: nothing to draw, the log has none of its points. Run: aebench run {figure.figure_id}"
        )
    return lambda: KINDS[figure.plot.kind](figure, found, caption)


def write_canvas(make: Callable[[], Canvas], out_stem: Path) -> list[Path]:
    """What ``make`` draws in the style of every figure, as .pdf, .png and .svg; all are rendered before any is
    written."""
    rendered = _rendered(make, list(FORMATS))
    return [_write(Path(f"{out_stem}.{suffix}"), content) for suffix, content in rendered.items()]


def _rendered(make: Callable[[], Canvas], suffixes: Sequence[str]) -> dict[str, bytes]:
    """The formats asked for, by suffix. The layout takes as long as a format does; one serves all."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(RC)
        canvas = make()
        canvas.draw_without_rendering()
        canvas.set_layout_engine("none")
        return {suffix: _render(canvas, suffix) for suffix in suffixes}


def describe_run(
    *, backend: str, seeds: Sequence[int], variant: str | None = None, hardware: str | None = None, kind: str = "bars"
) -> str:
    """The caption of a figure of that kind: where its values come from, over which seeds, under which variant."""
    source = {"sim": "Simulated", "live": "Measured on the live backend"}.get(backend, backend)
    if hardware is not None:
        source = f"{source}: {hardware}" if backend == "live" else f"{source} from a profile of {hardware}"
    parts = [source, _seeds_text(sorted(seeds))]
    if len(seeds) > 1 and kind == "over_time":
        parts.append("lines are means")
    elif len(seeds) > 1:
        whisker = "the range of both seeds" if len(seeds) == 2 else "the 95% t-interval of the mean"
        parts.append(f"{'bars' if 'bars' in kind else 'points'} are means, whiskers {whisker}")
    if variant is not None:
        parts.append(f"variant “{variant}”")
    return "; ".join(part for part in parts if part) + "."


def _seeds_text(seeds: Sequence[int]) -> str:
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"seeds {seeds[0]}–{seeds[-1]}"
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}" if seeds else ""


def _render(canvas: Canvas, suffix: str) -> bytes:
    buffer = io.BytesIO()
    canvas.savefig(buffer, format=suffix, metadata=FORMATS[suffix])
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(path.parent, error) from error
    with replacing(path) as file:
        file.write(content)
    return path


def _by_module(name: str) -> Kind:
    """What draws a kind: its module of the same name, imported when one is drawn."""

    def draw_kind(figure: Figure, found: Sequence[Cell], caption: str) -> Canvas:
        canvas: Canvas = import_module(f"aebench.plotting.{name}").draw(figure, found, caption)
        return canvas

    return draw_kind


KINDS: dict[str, Kind] = {
    name: _by_module(name)
    for name in ("bars", "change_bars", "lines", "log_lines", "ratio_bars", "line_grid", "over_time", "trade_off")
}
"""How each ``plot.kind`` is drawn; a kind's module is imported when one is drawn."""
