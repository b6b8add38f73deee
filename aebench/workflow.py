"""Workflow: what ``run``, ``plot``, ``diff`` and ``report`` do, from names to files; prints nothing."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aebench import claims as claiming
from aebench.catalog import Catalog
from aebench.choice import check_profile, choose
from aebench.coverage import covered
from aebench.declared import Declared
from aebench.errors import LogError, SpecError, UsageError, near_misses
from aebench.experiment import Experiment
from aebench.figure import Figure, IsCalibrated
from aebench.hosts.local import LocalHost
from aebench.logs import RunLog, find_runs
from aebench.machine import hardware_of, slug
from aebench.point import Point
from aebench.report import FigureResult, prediction_error
from aebench.run_manifest import RunManifest
from aebench.run_options import RunOptions
from aebench.runner import RunOutcome, run_experiment
from aebench.shown_runs import cells_of, counterpart, filled, refuse_mixing, run_spec, shown_runs, spec_differences

if TYPE_CHECKING:
    import pandas as pd

HISTORY = Path("history_logs")
"""Shipped runs, below the catalog's root."""
EXAMPLE = "Run, for example: aebench run figure7"


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One experiment to run, and the figures that want it."""

    experiment: Experiment
    declared: tuple[Declared, ...]
    points: tuple[Point, ...]

    @property
    def spec(self) -> dict[str, Any]:
        """What ``run.json`` keeps of the experiment; equal specs make equal records."""
        tables = run_spec(self.experiment.tables, self.experiment.testbeds.model_dump(mode="json"))
        profile = self.experiment.world.profile
        tables |= {} if profile is None else {"profile": profile.to_json()}
        loaded: dict[str, Any] = json.loads(json.dumps(tables))
        return loaded

    def seconds(self, jobs: int) -> float:
        """Estimated wall time: start of the workers, then the declared time per point."""
        return 1.5 + len(self.points) * self.experiment.seconds_per_point / jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A figure judged against a log, and the files made of it."""

    figure: Figure
    result: FigureResult
    log: RunLog
    summary: "pd.DataFrame"
    """The rows that the figure is about."""
    calibrated: IsCalibrated
    caption: str
    files: tuple[Path, ...] = ()


def plan(catalog: Catalog, names: Sequence[str], options: RunOptions) -> list[Planned]:
    """The experiments behind the names, each once, checked together with their figures' files before anything runs."""
    _refuse_twice(options.settings)
    planned, world = [], options.world
    for experiment_id, figures in choose(catalog, names, options).figures.items():
        experiment = catalog.experiment(experiment_id, options.scale, options.settings, world)
        for declared in figures:
            catalog.figure(catalog.figure_in(declared, world), experiment)
        points = _runnable(experiment.points(range(options.num_runs)), options)
        check_profile(points, world)
        planned.append(Planned(experiment=experiment, declared=tuple(figures), points=tuple(points)))
    return planned


def _runnable(points: Sequence[Point], options: RunOptions) -> Sequence[Point]:
    """The points, seen to have here what they need."""
    if options.backend != "live":
        return points
    from aebench.live_point import prepared

    return prepared(points, options.device or "cpu")


def rehearse(catalog: Catalog, planned: Sequence[Planned]) -> None:
    """Judge and draw nothing at all, so that what a figure's files ask for in vain shows before a run, not after it."""
    import pandas as pd

    from aebench.figure import cells
    from aebench.plotting.draw import KINDS

    for each in planned:
        for declared in each.declared:
            declared = catalog.figure_in(declared, each.experiment.world)
            figure = catalog.figure(declared, each.experiment)
            path = declared.path.with_suffix(".claim")
            if figure.plot.kind not in KINDS:
                close = near_misses(figure.plot.kind, KINDS)
                message = f"unknown kind {figure.plot.kind!r}.{close} Known: {', '.join(sorted(KINDS))}"
                raise SpecError(declared.path, "plot.kind", message)
            view = figure.view
            nothing = view.rows(pd.DataFrame(columns=[*view.table_keys, "seed", *view.metrics]))
            claiming.evaluate(figure.claims.claims, nothing, grid_keys=view.keys, calibrated=lambda _: False, path=path)
            cells(figure, nothing, lambda _: False)


def run(planned: Planned, options: RunOptions) -> tuple[RunLog, RunOutcome]:
    """Run what is missing of one experiment, in a new run or the one that is resumed."""
    world = planned.experiment.world
    manifest = RunManifest(
        experiment=planned.experiment.experiment_id,
        spec=planned.spec,
        seeds=tuple(range(options.num_runs)),
        backend=options.backend,
        grid_keys=planned.experiment.grid_keys,
        figures=tuple(declared.figure_id for declared in planned.declared),
        argv=_shareable(options.argv),
        num_points=len(planned.points),
        scale=options.scale,
        settings=options.settings,
        device=world.device,
        host={} if (hardware := hardware_of(world)) is None else {"hardware": hardware},
    )
    log = (_resumed(planned, options) if options.resume else None) or RunLog.create(options.log_path, manifest)
    outcome = run_experiment(planned.points, log, LocalHost(options.jobs), options.progress)
    return log, outcome


def judge(catalog: Catalog, declared: Declared, log: RunLog, fill: RunLog | None = None) -> Drawn:
    """A figure's claims and errors against a run, with missing rows filled in from a shipped one if given."""
    world = log.manifest.world
    declared = catalog.figure_in(declared, world)
    experiment = catalog.experiment(declared.experiment_id, world=world)
    figure = catalog.figure(declared, experiment)
    view = figure.view
    table = log.table(view.table)
    table = table if fill is None else filled(table, fill.table(view.table), experiment.grid_keys)
    _check_columns(log, table, figure)
    summary = view.rows(table)
    calibration = catalog.calibration(declared.paper)

    def calibrated(keys: Any) -> bool:
        return not world.is_local and calibration.uses(declared.figure_id, keys)

    judgements = claiming.evaluate(
        figure.claims.claims,
        summary,
        grid_keys=view.keys,
        calibrated=calibrated,
        path=declared.path.with_suffix(".claim"),
    )
    have = [dict(zip(experiment.grid_keys, row, strict=True)) for row in cells_of(table, experiment.grid_keys)]
    judgements = [covered(judgement, figure.grid, have) for judgement in judgements]
    result = FigureResult(
        figure_id=declared.figure_id,
        backend=log.manifest.backend,
        hardware=log.manifest.measured,
        wall_seconds=log.manifest.wall_seconds,
        judgements=judgements,
        prediction=prediction_error(figure, summary, calibrated),
        is_own=declared.name in catalog.papers[declared.paper].own,
    )
    return Drawn(
        figure=figure,
        result=result,
        log=log,
        summary=summary,
        calibrated=calibrated,
        caption=_caption(declared, log),
    )


def draw(drawn: Drawn, out: Path | None = None) -> tuple[Path, ...]:
    """Write the figure's claims, PDF, PNG and SVG beside the run, or the drawings into ``out``, where those of other
    hardware than the paper's have it in their names."""
    from aebench.plotting.draw import draw as draw_figure

    name = drawn.figure.figure_id.partition("/")[2]
    manifest = drawn.log.manifest
    stem = drawn.log.folder / name
    if out is not None:
        on = "" if manifest.hardware is None else f"-{manifest.backend}-{slug(manifest.hardware)}"
        stem = out / drawn.figure.paper / f"{name}{on}"
    files = draw_figure(drawn.figure, drawn.summary, stem, calibrated=drawn.calibrated, caption=drawn.caption)
    if out is None:
        text = claiming.measured_text(drawn.figure.claims, drawn.result.judgements)
        drawn.log.write(f"{name}.claim", text)
        files.append(drawn.log.folder / f"{name}.claim")
    return tuple(files)


def judged(catalog: Catalog, names: Sequence[str], log_path: Path, fill: bool = False) -> list[Drawn]:
    """Figures judged against runs under a log root: those that are named, and of a group (a paper, a topic; without
    names, of all there are) those that have a run there."""
    if not log_path.is_dir():
        raise LogError(f"{log_path}: no such folder. Give --log-path the folder that runs were written to")
    found = []
    alone = {each.figure_id for name in names if not catalog.is_group(name) for each in catalog.resolve([name])}
    for declared in catalog.resolve(names or ["all"]):
        logs = shown_runs(log_path, declared.experiment_id)
        for log in logs:
            history = shown_runs(catalog.root / HISTORY, declared.experiment_id) if fill else []
            shipped = counterpart(log, history)
            if shipped is not None:
                refuse_mixing(log, shipped)
            found.append(judge(catalog, declared, log, shipped))
        if declared.figure_id in alone and not logs:
            raise LogError(
                f"{log_path} has no run of {declared.experiment_id}, which {declared.figure_id} draws. "
                f"Run: aebench run {declared.figure_id} --log-path {log_path}"
            )
    if not found:
        what, example = (", ".join(names), f"Run: aebench run {' '.join(names)}") if names else ("any figure", EXAMPLE)
        raise LogError(f"{log_path} has no run of {what}. {example}")
    return found


def refuse_resuming_nothing(planned: Sequence[Planned], options: RunOptions) -> None:
    """``--resume`` finishes what is there and begins the rest, but something has to be there."""
    if options.resume and not any(_resumed(each, options) for each in planned):
        names = ", ".join(each.experiment.experiment_id for each in planned)
        raise LogError(f"{options.log_path} has no run of {names} with these settings to resume. Leave out --resume")


def _resumed(planned: Planned, options: RunOptions) -> RunLog | None:
    """The newest run of the same experiment with the same spec, seeds and world."""
    wanted = (tuple(range(options.num_runs)), options.world)
    for folder in find_runs(options.log_path, planned.experiment.experiment_id):
        log = RunLog.open(folder)
        same = (tuple(log.manifest.seeds), log.manifest.world) == wanted
        if same and not spec_differences(log.manifest.spec, planned.spec):
            return log
    return None


def _shareable(argv: Sequence[str]) -> tuple[str, ...]:
    """The command without its log path, which is a place on one machine and where the run lies anyway."""
    words = [word for word in argv if not word.startswith("--log-path=")]
    return tuple(word for before, word in zip(["", *words], words, strict=False) if "--log-path" not in (before, word))


def _refuse_twice(settings: Sequence[str]) -> None:
    keys = [setting.partition("=")[0].strip() for setting in settings]
    for key in keys:
        if keys.count(key) > 1:
            raise UsageError(f"--set {key} is given {keys.count(key)} times; give it once")


def _check_columns(log: RunLog, summary: "pd.DataFrame", figure: Figure) -> None:
    from pandas.api.types import is_numeric_dtype

    path = log.folder / f"{figure.view.table}.csv"
    metrics = figure.plot.metrics or (figure.plot.y,)
    for column in (*figure.view.table_keys, "seed", *metrics):
        if column not in summary.columns:
            raise SpecError(path, column, "this column is missing. Run again with --resume")
    for metric in metrics:
        if not is_numeric_dtype(summary[metric]):
            raise SpecError(path, metric, "expected numbers only. Run again with --resume")


def _caption(declared: Declared, log: RunLog) -> str:
    from aebench.plotting.draw import describe_run

    policy = log.manifest.spec.get("policy", {})
    run_text = describe_run(
        backend=log.manifest.backend,
        seeds=log.manifest.seeds,
        variant=policy.get("variant"),
        hardware=log.manifest.measured,
        kind=declared.file.plot.kind,
    )
    parts = (declared.file.caption, run_text, *_checkpoints(log), changes(log), log.manifest.late_clock)
    return " ".join(part for part in parts if part)


def _checkpoints(log: RunLog) -> list[str]:
    """The checkpoints of a run that are not those that its experiment's models are named for."""
    deployed = log.manifest.spec.get("deployments", {}) if log.manifest.world.is_local else {}
    given = {name: table["checkpoint"] for name, table in deployed.items() if table.get("checkpoint")}
    return [f"{name} is checkpoint {checkpoint}." for name, checkpoint in given.items()]


def changes(log: RunLog) -> str:
    """What makes the run differ from the experiment as declared; nothing when it does not."""
    manifest = log.manifest
    scale = [] if manifest.scale == "paper" else [f"--scale {manifest.scale}"]
    words = [*scale, *(f"--set {setting}" for setting in manifest.settings)]
    return f"Not as declared: {' '.join(words)}." if words else ""
