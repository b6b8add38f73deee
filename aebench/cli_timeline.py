"""``aebench plot timeline``: what every worker of one point did, drawn over time."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from aebench.logs import RunLog
    from aebench.timeline import Interval, Timeline
    from aebench.timeline_point import SealedPoint

FOLDER = click.Path(path_type=Path, file_okay=False)
TIME = click.FloatRange(min=0)


@click.command()
@click.argument("what", required=False)
@click.option("--point", default="", metavar="KEY=VALUE,...", help="Which point of the run  [default: its only one].")
@click.option("--from", "start", type=TIME, metavar="S", help="Begin here  [default: the busiest 300 s].")
@click.option("--to", "end", type=TIME, metavar="S", help="End here.")
@click.option("--out", type=FOLDER, help="Write here, not beside the run.")
@click.option("--log-path", type=FOLDER, default="logs", show_default=True, help="Folder of the runs, or of one run.")
def timeline(
    what: str | None, point: str, start: float | None, end: float | None, out: Path | None, log_path: Path
) -> None:
    """Draw what the workers of one point did: starting, fetching, serving, consolidating, by server and GPU.

    \b
    aebench plot timeline figure9 --point system=hydraserve,cv=8,rate=0.6
    aebench plot timeline --log-path RUN --point system=hydraserve,cv=8,rate=0.6 --from 600 --to 900
    """
    from aebench.catalog import Catalog
    from aebench.plotting.draw import write_canvas
    from aebench.plotting.timeline import draw
    from aebench.point_log import placed_by
    from aebench.timeline_point import chosen_window, one_point, one_run, timeline_of

    log = one_run(Catalog(), what, log_path)
    chosen = one_point(log, point)
    shown = timeline_of(chosen)
    window = chosen_window(start, end, shown)
    folder = log.folder if out is None else out / log.manifest.experiment
    stem = folder / f"timeline-{chosen.name}-{window[0]:.0f}-{window[1]:.0f}s"
    with placed_by("--log-path" if out is None else "--out"):
        files = write_canvas(lambda: draw(shown, window, _caption(log, chosen, shown, window)), stem)
    click.echo(f"{log.manifest.experiment}  {chosen.name}  {' '.join(map(str, files))}")


def _caption(log: "RunLog", point: "SealedPoint", shown: "Timeline", window: "Interval") -> str:
    from aebench.plotting.draw import describe_run
    from aebench.workflow import changes

    manifest = log.manifest
    parts = [
        f"{manifest.experiment}, {point.name}, seconds {window[0]:.0f} to {window[1]:.0f} of {shown.end:.0f}.",
        "A bar is a worker process, #INSTANCE.RANK, on its GPU; fetching and loading lie over what it does meanwhile.",
        describe_run(backend=manifest.backend, seeds=[point.seed], hardware=manifest.measured),
        changes(log),
    ]
    return " ".join(part for part in parts if part)
