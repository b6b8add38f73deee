"""Reads what a figure's files say: its view of a run, the paper's points, the claims, the notes."""

from collections.abc import Mapping, Sequence

import pandas as pd

from aebench.calibration import Calibration
from aebench.claim_syntax import ClaimFile, key_text
from aebench.claims import parse
from aebench.declared import Declared
from aebench.deployed_models import tables_by_model
from aebench.errors import SpecError, near_misses
from aebench.experiment import Experiment
from aebench.figure import Figure, PlotSpec
from aebench.logs import PRIORITIES, SUMMARY
from aebench.paper_points import read_paper_points
from aebench.point_checks import check_name
from aebench.tables import BREAKDOWNS, tables_of
from aebench.view import View, view_of


def read_figure(declared: Declared, experiment: Experiment, calibration: Calibration) -> Figure:
    """A figure with its points, claims and notes; ``declared`` and ``experiment`` are of one world."""
    values = _values(experiment)
    view = _view(declared, experiment, values)
    points = _paper_points(declared, experiment, view)
    if not experiment.world.is_local:
        printed = {} if points is None else {key: points[key].tolist() for key in view.keys}
        calibration.check_points(declared.figure_id, printed)
    notes = declared.path.with_suffix(".md")
    plot = PlotSpec(
        **declared.file.plot.model_dump(exclude={"y"}),
        y=_metrics(declared)[0],
        labels=declared.file.labels,
        order=values,
        is_ratio=view.ratio is not None,
    )
    return Figure(
        figure_id=declared.figure_id,
        paper=declared.paper,
        shows=declared.file.shows,
        experiment=declared.experiment_id,
        plot=plot,
        paper_points=points,
        claims=read_claims(declared),
        notes=notes.read_text(encoding="utf-8") if notes.exists() else None,
        folder=declared.path.parent,
        grid=view.points([{key: key_text(value) for key, value in cell.items()} for cell in experiment.cells()]),
        paper_label=declared.file.paper_label,
        paper_bars=_paper_bars(declared),
        orientation=declared.file.orientation,
        view=view,
    )


def _values(experiment: Experiment) -> dict[str, list[str]]:
    """Values in printed order by key: of the grid as it is and as its file has it, applications, deployed models."""
    deployments = experiment.file.model_dump(include={"deployments"})["deployments"]
    tables = tables_by_model(deployments)
    grid = {key: [*values, *experiment.declared_grid.get(key, ())] for key, values in experiment.file.grid.items()}
    values = {key: list(dict.fromkeys(map(key_text, found))) for key, found in grid.items()}
    applications = dict.fromkeys(table["application"] for table in tables.values() if table["application"])
    return {"application": list(applications), "model": list(tables), "priority": list(PRIORITIES), **values}


def _view(declared: Declared, experiment: Experiment, values: Mapping[str, Sequence[str]]) -> View:
    """What the figure sees of a run; whatever it plots is there."""
    file, path = declared.file, declared.path
    tables = tables_of(experiment.file.measure.model_dump())
    name = file.table or SUMMARY
    part = name.removeprefix("by_")
    if name not in tables and part in BREAKDOWNS:
        message = f"a run of {experiment.path} makes no {name}; expected {part!r} in its measure.breakdown"
        raise SpecError(path, "table", message)
    check_name(str(path), "table", "table", name, tables)
    table = tables[name]
    view = view_of(file, path, (*experiment.grid_keys, *table.keys), table.metrics, values)
    for key in (file.plot.panel, file.plot.x, file.plot.series):
        if key is not None and key not in view.keys:
            what = "the experiment has no grid key" if view.keys == experiment.grid_keys else "what it draws has no key"
            raise SpecError(path, "plot", f"{what} {key!r}. Known: {', '.join(view.keys)}")
    for metric in _metrics(declared):
        if metric not in table.metrics:
            known = f"{near_misses(metric, table.metrics)} Known: {', '.join(table.metrics)}"
            where = "plot.metrics" if file.plot.metrics else "plot.y"
            raise SpecError(path, where, f"unknown metric {metric!r}.{known}")
    for metric in file.plot.near_zero:
        check_name(str(path), "plot.near_zero", "metric", metric, file.plot.metrics)
    return view


def _metrics(declared: Declared) -> list[str]:
    """What the figure draws: ``plot.metrics``, or ``plot.y`` alone."""
    plot = declared.file.plot
    if (plot.y is None) == (not plot.metrics):
        raise SpecError(declared.path, "plot", "expected y, or metrics where several are drawn, one of them")
    return plot.metrics or [str(plot.y)]


def read_claims(declared: Declared) -> ClaimFile:
    """The figure's claims; none when there is no such file."""
    path = declared.path.with_suffix(".claim")
    if not path.exists():
        return parse("", path)
    try:
        return parse(path.read_text(encoding="utf-8"), path)
    except UnicodeDecodeError as error:
        raise SpecError(path, "", f"not UTF-8 text (byte {error.start})") from error


def _paper_points(declared: Declared, experiment: Experiment, view: View) -> pd.DataFrame | None:
    if declared.file.paper is None:
        return None
    path = declared.path.parent / declared.file.paper
    points = read_paper_points(path, [*view.keys, *_metrics(declared)], _metrics(declared))
    if not declared.file.orientation:
        return points
    for key in view.keys:  # of hardware that this run did not measure there is nothing to show
        if key in experiment.grid_keys:
            points = points[points[key].map(key_text).isin([key_text(value) for value in experiment.file.grid[key]])]
    return points if len(points) else None


def _paper_bars(declared: Declared) -> pd.DataFrame | None:
    if declared.file.paper_bars is None:
        return None
    series, metrics = declared.file.plot.series, _metrics(declared)
    columns = ["bar", *([series] if series else []), *metrics]
    return read_paper_points(declared.path.parent / declared.file.paper_bars, columns, metrics)
