"""Commands: what each command of the CLI says, as text; ``workflow`` does the work."""

import json
import os
import shlex
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from aebench import report as reporting
from aebench import workflow
from aebench.catalog import Catalog
from aebench.choice import choose
from aebench.claims import exit_code
from aebench.errors import Stopped, UsageError
from aebench.logs import RunLog
from aebench.point_log import placed_by
from aebench.report_json import to_json
from aebench.run_options import RunOptions
from aebench.runner import RunOutcome
from aebench.workflow import Drawn, Planned

Say = Callable[[str], None]


def run_options(*, runs: int, settings: tuple[str, ...], jobs: int | None, **flags: Any) -> RunOptions:
    """Options of ``aebench run`` from its flags: by default one worker a core, and for live points always one."""
    if flags.get("backend") != "live":
        if flags.get("device") is not None:
            raise UsageError(f"--device {flags['device']}: only --backend live computes on a device")
        return RunOptions(num_runs=runs, settings=settings, jobs=jobs or os.cpu_count() or 1, **flags)
    if flags.get("profile") is not None:
        raise UsageError("--profile is for simulations, --backend live measures anew; leave out one of them")
    notes = (f"live points run one at a time, --jobs {jobs} or not",) if jobs is not None and jobs > 1 else ()
    return RunOptions(num_runs=runs, settings=settings, jobs=1, notes=notes, **flags)


def dry_run(names: Sequence[str], options: RunOptions, as_json: bool) -> str:
    """The points that a run would have, and how long it would take."""
    catalog = Catalog()
    planned = workflow.plan(catalog, names, options)
    workflow.rehearse(catalog, planned)
    notes = [*options.notes, *choose(catalog, names, options).left_out]
    if as_json:
        plans = [
            {
                "experiment": each.experiment.experiment_id,
                "figures": [declared.figure_id for declared in each.declared],
                "points": [{**point.keys, "seed": point.seed} for point in each.points],
                "estimated_seconds": each.seconds(options.jobs),
            }
            for each in planned
        ]
        return json.dumps({"experiments": plans, "notes": notes}, indent=2)
    lines = list(notes)
    for each in planned:
        lines.append(_plan_line(each, options))
        lines += [f"  {point.name}" for point in each.points]
    return "\n".join(lines)


def run(names: Sequence[str], options: RunOptions, as_json: bool, say: Say, warn: Say) -> int:
    """Run, draw and judge; the exit code. A stop keeps what is done, and failed points do not stop what comes after."""
    catalog = Catalog()
    planned = workflow.plan(catalog, names, options)
    workflow.rehearse(catalog, planned)
    workflow.refuse_resuming_nothing(planned, options)
    for note in (*options.notes, *choose(catalog, names, options).left_out):
        warn(note)
    everything: list[Drawn] = []
    code = 0
    for each in planned:
        if not as_json:
            say(_plan_line(each, options))
        log, outcome = workflow.run(each, options)
        try:
            drawn = [_finish(catalog, declared, log) for declared in each.declared] if outcome.num_done else []
        except Stopped as stopped:
            warn(_how_to_draw(each, log, outcome, stopped.signum))
            return 128 + stopped.signum
        everything += drawn
        for line in [] if as_json else [*_outcome_lines(outcome), *map(figure_text, drawn), f"log    {log.folder}"]:
            say(line)
        if outcome.status != "success" or outcome.signum:
            warn(_how_to_resume(outcome, options))
            code = 128 + outcome.signum if outcome.signum else 2
        if outcome.signum:
            break
    if as_json:
        say(to_json([figure.result for figure in everything]))
    return code


def plot(names: Sequence[str], log_path: Path, fill: bool, out: Path | None) -> str:
    """Draw again; the files written."""
    _refuse_self_fill(log_path, fill)
    drawn = workflow.judged(Catalog(), names, log_path, fill)
    with placed_by("--log-path" if out is None else "--out"):
        return "\n".join(f"{each.figure.figure_id}  {' '.join(map(str, workflow.draw(each, out)))}" for each in drawn)


def diff(
    names: Sequence[str], log_path: Path, *, against: Path | None, fill: bool, as_json: bool, **shown: bool
) -> tuple[str, int]:
    """The claim tables, and 1 when a claim fails."""
    _refuse_self_fill(log_path, fill)
    if against is not None and against.resolve() == log_path.resolve():
        raise UsageError(f"--against {against} is the log path itself; give another log")
    catalog = Catalog()
    drawn = workflow.judged(catalog, names, log_path, fill)
    code = exit_code([judgement for each in drawn for judgement in each.result.judgements])
    if as_json:
        return to_json([each.result for each in drawn]), code
    blocks = [f"{figure_text(each)}\nlog    {each.log.folder}" for each in drawn]
    if shown.get("points"):
        blocks += [_points_text(each) for each in drawn]
    if shown.get("stages"):
        blocks += [_stages_text(catalog, each) for each in drawn]
    if against is not None:
        from aebench.comparison import comparisons

        others = workflow.judged(catalog, [each.figure.figure_id for each in drawn], against)
        blocks += comparisons(drawn, others, against)
    return "\n\n".join(blocks), code


def _points_text(drawn: Drawn) -> str:
    from aebench.figure import cells

    return reporting.point_table(cells(drawn.figure, drawn.summary, drawn.calibrated), drawn.figure.plot)


def _stages_text(catalog: Catalog, drawn: Drawn) -> str:
    from aebench.stages import stage_rows, stage_table

    manifest = drawn.log.manifest
    experiment = catalog.experiment(manifest.experiment, world=manifest.world)
    rows = stage_rows(drawn.log, experiment.file.measure.labels)
    return f"stages of {drawn.log.folder}\n{stage_table(rows, manifest.grid_keys)}"


def report(names: Sequence[str], log_path: Path, out: Path) -> str:
    """Write the HTML page; where it is."""
    from aebench.page import write_page

    catalog = Catalog()
    drawn = workflow.judged(catalog, names, log_path)
    write_page(catalog, drawn, log_path, out)
    figures = ", ".join(each.figure.figure_id for each in drawn)
    return f"{out}  ({figures})"


def figure_text(drawn: Drawn) -> str:
    """What a reviewer asks first: the finding, the error of prediction, the claims, the files."""
    result = drawn.result
    headline = reporting.headline(result.figure_id, result.judgements, result.backend, result.wall_seconds)
    manifest = drawn.log.manifest
    how = {"sim": "Simulated from a profile of", "live": "Measured on"}[result.backend]
    measured = f"{how} {result.hardware}." if result.hardware is not None else ""
    remarks = (measured, manifest.late_clock, workflow.changes(drawn.log))
    lines = ["", headline, *(remark for remark in remarks if remark)]
    if result.prediction is not None:
        lines += [part.strip() for part in result.prediction.text.split(";")]
    if result.judgements:
        lines += ["", reporting.claim_table(result.judgements, result.says), ""]
    lines += [f"figure {path}" if path.suffix != ".claim" else f"claims {path}" for path in drawn.files]
    return "\n".join(lines)


def _finish(catalog: Catalog, declared: Any, log: Any) -> Drawn:
    from dataclasses import replace

    drawn = workflow.judge(catalog, declared, log)
    return replace(drawn, files=workflow.draw(drawn))


def _plan_line(planned: Planned, options: RunOptions) -> str:
    experiment = planned.experiment
    seeds = f", {options.num_runs} seeds" if options.num_runs > 1 else ""
    seconds = reporting.duration_text(planned.seconds(options.jobs))
    return (
        f"{experiment.experiment_id}: {len(planned.points)} points{seeds} on {options.backend}, "
        f"about {seconds} with {options.jobs} job{'s' if options.jobs > 1 else ''}"
    )


def _outcome_lines(outcome: RunOutcome) -> list[str]:
    lines = []
    if outcome.num_reused:
        lines.append(f"{outcome.num_reused} of {outcome.num_points} points were there already")
    lines += [f"the worker of {name} died; the point was run again" for name in outcome.retries]
    for name, message in outcome.errors.items():
        lines.append(f"error in {name}: {message.strip().splitlines()[-1]} (all of it is in run.json)")
    return lines


def _how_to_resume(outcome: RunOutcome, options: RunOptions) -> str:
    """Which points are kept, and the command that finishes the run."""
    words = [word for word in options.argv if word != "--resume"]
    command = shlex.join(["aebench", *words, "--resume"])
    what = f"Stopped by {signal.Signals(outcome.signum).name}" if outcome.signum else "Some points failed"
    return f"{what}: {outcome.num_done} of {outcome.num_points} points are kept. To finish: {command}"


def _how_to_draw(planned: Planned, log: RunLog, outcome: RunOutcome, signum: int) -> str:
    names = " ".join(declared.figure_id for declared in planned.declared)
    return (
        f"Stopped by {signal.Signals(signum).name} while drawing: {outcome.num_done} of {outcome.num_points} points "
        f"are kept. To draw: aebench plot {names} --log-path {shlex.quote(str(log.folder))}"
    )


def _refuse_self_fill(log_path: Path, fill: bool) -> None:
    if fill and log_path.resolve() == (Catalog().root / workflow.HISTORY).resolve():
        raise UsageError("--fill history fills from history_logs, which --log-path is already; leave out --fill")
