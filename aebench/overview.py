"""Overview: what ``aebench list`` shows."""

import os

from aebench.catalog import Catalog
from aebench.errors import NotFoundError, SpecError, near_misses
from aebench.report import duration_text
from aebench.run_options import RunOptions
from aebench.workflow import plan


def figure_list(paper: str | None) -> str:
    """Every figure with its points, estimated time and what it needs, paper by paper; of a paper whose files cannot be
    read, why."""
    catalog = Catalog()
    known = [*catalog.papers, *catalog.broken]
    if paper is not None and paper not in known:
        raise NotFoundError(f"no paper {paper!r}.{near_misses(paper, known)} Known: {', '.join(known)}")
    if paper in catalog.broken:
        raise catalog.broken[paper]
    lines = []
    for name, file in catalog.papers.items():
        if paper in (None, name):
            lines += ["", f"{name}  {file.title} ({file.venue})", f"  {file.about}"]
            lines += [f"  {line}" for line in _lines_or_error(catalog, name, alone=paper is not None)]
            lines += [f"  topic {topic}: {', '.join(figures)}" for topic, figures in file.topics.items()]
    lines += [f"\n{name}  cannot be read: {error}" for name, error in catalog.broken.items() if paper is None]
    return "\n".join(lines).removeprefix("\n")


def _lines_or_error(catalog: Catalog, paper: str, alone: bool) -> list[str]:
    """The figures of a paper; among other papers, what is wrong with its files is no reason not to list those."""
    try:
        return _figure_lines(catalog, paper)
    except SpecError as error:
        if alone:
            raise
        return [f"cannot be read: {error}"]


def _figure_lines(catalog: Catalog, paper: str) -> list[str]:
    options = RunOptions(jobs=os.cpu_count() or 1)
    rows = [("figure", "points", "about", "runs on", "shows")]
    for figure_id, declared in catalog.figures.items():
        if declared.paper == paper:
            (planned,) = plan(catalog, [figure_id], options)
            file = planned.experiment.file
            time = duration_text(planned.seconds(options.jobs))
            shows = declared.file.shows
            rows.append((figure_id, str(len(planned.points)), time, ", ".join(file.backend), shows))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]) for row in rows]
