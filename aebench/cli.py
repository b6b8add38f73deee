"""The command line: parse, call one function, print. Everything heavy is imported inside a command."""

import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import click

from aebench.errors import AebenchError, Stopped

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

Command = TypeVar("Command", bound=Callable[..., Any])

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

MORE_COMMANDS = {
    "calibrate": "aebench.cli_calibrate:calibrate",
    "model": "aebench.cli_model:model",
    "serve": "aebench.cli_serve:serve",
    "storage": "aebench.cli_storage:storage",
    "trace": "aebench.cli_trace:trace",
}
"""Commands in files of their own."""

TWO_WORDS = {("plot", "timeline"): "aebench.cli_timeline:timeline"}
"""Commands of two words. The first is a command too, which takes any other word as a name."""


class _Shown(click.ClickException):
    """One of our errors as click shows its own."""

    def __init__(self, error: AebenchError) -> None:
        super().__init__(str(error))
        setattr(self, "exit_code", error.exit_code)  # noqa: B010 - click types it as a class variable


class Commands(click.Group):
    """Ends on our errors with one message and an exit code, no traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in alphabetical order."""
        return sorted({*super().list_commands(ctx), *MORE_COMMANDS})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name, imported when it is asked for."""
        if cmd_name not in MORE_COMMANDS:
            return super().get_command(ctx, cmd_name)
        return _imported(MORE_COMMANDS[cmd_name])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command of the first word or two, and the words behind."""
        words = tuple(args[:2])
        if words in TWO_WORDS:
            return " ".join(words), _imported(TWO_WORDS[words]), args[2:]
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        before = [signal.signal(number, _stop) for number in STOP_SIGNALS]
        try:
            return super().invoke(ctx)
        except AebenchError as error:
            raise _Shown(error) from error
        except ValueError as error:
            if not _is_of_the_live_backend(error):
                raise
            raise _Shown(AebenchError(str(error))) from error
        except Stopped as stopped:
            _warn(f"Stopped by {signal.Signals(stopped.signum).name}")
            ctx.exit(128 + stopped.signum)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(0)
        finally:
            for number, handler in zip(STOP_SIGNALS, before, strict=True):
                signal.signal(number, handler)


def _imported(place: str) -> click.Command:
    """The command at ``module:name``."""
    module, _, name = place.partition(":")
    command: click.Command = getattr(import_module(module), name)
    return command


def _is_of_the_live_backend(error: ValueError) -> bool:
    """Whether it is a LiveError, whose text is meant for the user as it is."""
    from serving.live.errors import LiveError

    return isinstance(error, LiveError)


def _stop(signum: int, _: FrameType | None) -> None:
    raise Stopped(signum)


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> "list[CompletionItem]":
    del ctx, param  # names do not depend on them
    from click.shell_completion import CompletionItem

    from aebench.catalog import Catalog

    try:
        names = Catalog().known_names()
    except AebenchError:  # the command itself will say it; a half-typed line is no place to
        names = []
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def _warn(text: str) -> None:
    click.echo(text, err=True)


def _what(required: bool) -> Callable[[Command], Command]:
    return click.argument("what", nargs=-1, required=required, shell_complete=_complete)


def _log_path(default: str | None) -> Callable[[Command], Command]:
    return click.option(
        "--log-path",
        type=click.Path(path_type=Path, file_okay=False),
        default=default,
        required=default is None,
        show_default=default is not None,
        help="Folder that holds the runs.",
    )


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="aebench")
def cli() -> None:
    """Reproduce the experiments of LLM-serving papers, and compare with what the papers say.

    \b
    Start with:   aebench run hello
    Then:         aebench run figure7

    AEBENCH_ROOT names another folder to read experiments/ and figures/ from.
    """


@cli.command("list")
@click.argument("paper", required=False)
def list_command(paper: str | None) -> None:
    """What can be run: figures, points, estimated time."""
    from aebench.overview import figure_list

    click.echo(figure_list(paper))


@cli.command()
@_log_path("logs")
def doctor(log_path: Path) -> None:
    """What this machine can run, and what is missing for the rest."""
    from aebench.doctor import examine

    examination = examine(log_path)
    click.echo(examination.text)
    sys.exit(0 if examination.healthy else 2)


@cli.command()
@_what(required=True)
@click.option("--backend", type=click.Choice(["sim", "live"]), default="sim", show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Of --backend live  [default: cpu].")
@click.option("--profile", type=click.Path(path_type=Path, dir_okay=False), help="Simulate a measured machine.")
@click.option("--scale", type=click.Choice(["smoke", "paper"]), default="paper", show_default=True)
@click.option("--runs", type=click.IntRange(1, 1000), default=1, help="Repeat with seeds 0..N-1.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a field; grid.KEY=V1,V2 an axis.")
@click.option("--jobs", type=click.IntRange(1, 1024), default=None, help="Worker processes  [default: cores].")
@click.option("--resume", is_flag=True, help="Finish the newest run with the same settings.")
@click.option("--dry-run", is_flag=True, help="Print the points and the estimated time only.")
@click.option("--json", "as_json", is_flag=True, help="Print the results for machines.")
@_log_path("logs")
def run(what: tuple[str, ...], dry_run: bool, as_json: bool, **flags: Any) -> None:
    """Run figures, experiments, papers, topics, `hello`, or `all`; draw them and judge their claims."""
    from aebench import commands

    options = commands.run_options(progress=not as_json, argv=tuple(sys.argv[1:]), **flags)
    if dry_run:
        click.echo(commands.dry_run(what, options, as_json))
    else:
        sys.exit(commands.run(what, options, as_json, click.echo, _warn))


@cli.command()
@_what(required=False)
@click.option("--fill", type=click.Choice(["history"]), help="Draw points that were not run from shipped logs, hollow.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Write here, not beside the run.")
@_log_path("logs")
def plot(what: tuple[str, ...], fill: str | None, out: Path | None, log_path: Path) -> None:
    """Draw figures again from logs; runs nothing. `aebench plot timeline` draws one run's workers over time."""
    from aebench import commands

    click.echo(commands.plot(what, log_path, fill is not None, out))


@cli.command()
@_what(required=False)
@click.option("--against", type=click.Path(path_type=Path, file_okay=False), help="Compare with another log's runs.")
@click.option("--fill", type=click.Choice(["history"]), help="Judge points that were not run by shipped logs.")
@click.option("--points", is_flag=True, help="Also every point beside the paper's.")
@click.option("--stages", is_flag=True, help="Also when each stage of the cold starts begins and how long it takes.")
@click.option("--json", "as_json", is_flag=True, help="Print the results for machines.")
@_log_path("logs")
def diff(what: tuple[str, ...], fill: str | None, as_json: bool, log_path: Path, **shown: Any) -> None:
    """Measured claims beside the paper's; exit code 1 when one fails."""
    from aebench import commands

    text, code = commands.diff(what, log_path, fill=fill is not None, as_json=as_json, **shown)
    click.echo(text)
    sys.exit(code)


@cli.command()
@_what(required=False)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default="report.html", show_default=True)
@_log_path("logs")
def report(what: tuple[str, ...], out: Path, log_path: Path) -> None:
    """One self-contained HTML page: claims, figures, errors, provenance, parameters."""
    from aebench import commands

    click.echo(commands.report(what, log_path, out))


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell: eval "$(aebench completion bash)"."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    if found is not None:
        click.echo(found(cli, {}, "aebench", "_AEBENCH_COMPLETE").source())
