"""Overview: what ``aebench list`` shows."""

import os

from aebench.catalog import Catalog
from aebench.errors import NotFoundError, near_misses
from aebench.report import duration_text
from aebench.run_options import RunOptions
from aebench.workflow import plan


def figure_list(paper: str | None) -> str:
    """Every figure with its points, estimated time and what it needs, paper by paper."""
    catalog = Catalog()
    if paper is not None and paper not in catalog.papers:
        known = ", ".join(catalog.papers)
        raise NotFoundError(f"no paper {paper!r}.{near_misses(paper, catalog.papers)} Known: {known}")
    lines = []
    for name, file in catalog.papers.items():
        if paper in (None, name):
            lines += ["", f"{name}  {file.title} ({file.venue})", f"  {file.about}"]
            lines += [f"  {line}" for line in _figure_lines(catalog, name)]
            lines += [f"  topic {topic}: {', '.join(figures)}" for topic, figures in file.topics.items()]
    return "\n".join(lines[1:])


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
