"""``aebench trace``: make, import and look at workload traces."""

from pathlib import Path

import click

FILE = click.Path(path_type=Path, dir_okay=False)
SET = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Grid axis or field of the experiment."
)
SEED = click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="As of a run with it.")
OUT = click.option("--out", type=FILE, required=True, help="CSV file to write.")
EXPERIMENT = click.option(
    "--experiment",
    default="llumnix/serving",
    show_default=True,
    help="Its models, arrivals and number of requests.",
)


@click.group()
def trace() -> None:
    """Workload traces: CSV files of requests, with arrival times, models and lengths.

    An experiment runs one with --set workload.arrivals.kind=trace --set workload.arrivals.file=FILE where its workload
    is an open loop, with --set workload.trace.kind=file --set workload.trace.file=FILE where it is serverless traffic.
    """


@trace.command("make")
@click.argument("experiment")
@SET
@SEED
@OUT
def make_command(experiment: str, settings: tuple[str, ...], seed: int, out: Path) -> None:
    """Write the requests that an EXPERIMENT's points send to a trace file.

    Settings choose among points that differ in them: --set grid.rate=0.6 --set grid.cv=8.
    """
    from aebench.trace_commands import make

    click.echo(make(experiment, settings, seed, out))


@trace.group("import")
def import_group() -> None:
    """Make a trace from one that others recorded."""


@import_group.command("azure-functions")
@click.argument("file", type=FILE)
@click.option("--experiment", default="end_to_end", show_default=True, help="Its deployments, lengths, rate and CV.")
@SET
@SEED
@OUT
def azure_functions_command(file: Path, experiment: str, settings: tuple[str, ...], seed: int, out: Path) -> None:
    """Make a trace from FILE, AzureFunctionsInvocationTraceForTwoWeeksJan2021.txt.

    Functions are dealt to the deployed models, gaps fitted and drawn anew, days compressed, a subset kept: as the
    experiment does it with synthetic functions.
    """
    from aebench.trace_commands import import_azure_functions

    click.echo(import_azure_functions(file, experiment, settings, seed, out))


@import_group.command("sharegpt")
@click.argument("file", type=FILE)
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder with the model's tokenizer.json, which counts the tokens.",
)
@EXPERIMENT
@SET
@SEED
@OUT
def sharegpt_command(
    file: Path, tokenizer: Path, experiment: str, settings: tuple[str, ...], seed: int, out: Path
) -> None:
    """Make a trace from FILE, ShareGPT as JSON or JSON lines (sharegpt_gpt4.jsonl).

    The first question and answer of each conversation are a request's lengths, in file order; those of 12,800 tokens or
    more in all are left out. Arrivals are those of the experiment.
    """
    from aebench.trace_imports import import_sharegpt

    click.echo(import_sharegpt(file, tokenizer, experiment, settings, seed, out))


@import_group.command("burstgpt")
@click.argument("file", type=FILE)
@EXPERIMENT
@SET
@SEED
@OUT
def burstgpt_command(file: Path, experiment: str, settings: tuple[str, ...], seed: int, out: Path) -> None:
    """Make a trace from FILE, BurstGPT as CSV (BurstGPT_1.csv).

    Answered conversations with GPT-4 are drawn from it, none twice; prompts and outputs are cut to 6,144 tokens.
    Arrivals are those of the experiment.
    """
    from aebench.trace_imports import import_burstgpt

    click.echo(import_burstgpt(file, experiment, settings, seed, out))


@trace.command("show")
@click.argument("file", type=FILE)
@click.option(
    "--keep-alive", type=click.FloatRange(min=0), default=30.0, show_default=True, help="Of warm instances, s."
)
@click.option("--out", type=FILE, help="Draw a picture there, as .pdf, .png and .svg.")
def show_command(file: Path, keep_alive: float, out: Path | None) -> None:
    """Statistics of a trace FILE, and a picture of it."""
    from aebench.trace_commands import show

    click.echo(show(file, keep_alive, out))
