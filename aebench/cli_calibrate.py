"""``aebench calibrate``: measure this machine, and write the profile that simulates it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aebench.errors import UsageError

if TYPE_CHECKING:
    from serving.live.calibrate.measure import Calibration

RESTLESS = 0.2
"""Jitter of starts that a machine with nothing else to do does not show."""
FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.option("--model", "name", required=True, metavar="MODEL", help="A checkpoint's folder, or its name.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True, help="CPU threads of a worker.")
@click.option("--instances", type=click.IntRange(1, 64), default=2, show_default=True, help="That compute at once.")
@click.option("--out", type=FILE, help="The profile  [default: profile-MODEL-DEVICE.json].")
@click.option("--quick", is_flag=True, help="A rough profile in well under a minute.")
@click.option("--force", is_flag=True, help="Replace a profile that is there.")
def calibrate(name: str, device: str, out: Path | None, quick: bool, force: bool, **counts: int) -> None:
    """Measure steps, starts and transfers on this machine, and write a profile for `aebench run --profile`.

    Takes two to three minutes, in which the machine should do nothing else.
    """
    from aebench.machine import check_live, hardware_text, num_devices, usable_cores
    from serving.live.calibrate.measure import QUICK, Effort, Options
    from serving.live.calibrate.measure import calibrate as measure
    from serving.live.checkpoint import find

    check_live("aebench calibrate", device)
    folder = find(name)
    path = out or Path(f"profile-{folder.absolute().name}-{device}.json")
    _check_place(path, force)
    options = Options(
        hardware=hardware_text(device),
        num_cores=usable_cores(),
        device=device,
        num_devices=num_devices(device),
        threads=counts["threads"],
        num_instances=counts["instances"],
        effort=QUICK if quick else Effort(),
    )
    found = measure(folder, options, lambda text: click.echo(f"  {text}", err=True))
    _write(found, path)
    click.echo(_table(found))
    click.echo(f"\n{path}. Simulate this machine: aebench run figure7 --profile {path}")


def _check_place(path: Path, force: bool) -> None:
    """Whether the profile can be written, before minutes are spent on it."""
    if path.exists() and not force:
        raise UsageError(f"{path}: there is a profile already. Expected another --out, or --force to replace it")
    if not path.resolve().parent.is_dir() or not os.access(path.resolve().parent, os.W_OK):
        raise UsageError(f"{path}: cannot be written. Expected --out in a folder that is there and may be written to")


def _write(found: "Calibration", path: Path) -> None:
    """Whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(json.dumps(found.profile.to_json(), indent=1) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


def _table(found: "Calibration") -> str:
    return "\n".join(_lines(found))


def _lines(found: "Calibration") -> Iterator[str]:
    profile = found.profile
    steps, startup = profile.steps, profile.startup
    yield f"{profile.model} on {profile.hardware}, measured in {found.took:.0f} s"
    yield "\nsteps              " + _curve("tokens", steps.prefill)
    yield "                   " + _curve("decodes", steps.decode)
    yield f"  per KV entry     {1e6 * steps.context:.3f} us, per query-key pair of a chunk {1e9 * steps.pairs:.1f} ns"
    yield f"  further stage    {1e3 * steps.hop:.2f} ms"
    for number, factors in list(enumerate(steps.slowdown, 1))[1:]:
        shown = "  ".join(f"{rows}: x{factor:.2f}" for rows, factor in factors)
        yield f"  {number} at once        by rows {shown}"
    yield "\nstart              " + ", ".join(
        f"{name} {getattr(startup, name):.3f} s" for name in ("container", "libraries", "context", "engine")
    )
    yield f"  first step       {1e3 * startup.first_step:.1f} ms"
    yield f"  jitter           {startup.jitter:.3f}, starts at once share {startup.host_cores:.3g} cores"
    if startup.jitter > RESTLESS:
        yield "  Starts differed a lot from each other: was the machine busy with something else? Then measure again."
    yield (
        f"\nbytes              fetch {profile.fetch_rate / 1e9:.2f} GB/s, load {profile.load_rate / 1e9:.2f} GB/s, "
        f"load by the engine {startup.engine_load_rate / 1e9:.2f} GB/s"
    )
    yield "\nnot part of the fit                        measured   predicted   error"
    for check in found.checks:
        yield f"  {check.name:<38} {1e3 * check.measured:9.1f} ms {1e3 * check.predicted:8.1f} ms {check.error:+7.1%}"


def _curve(what: str, curve: tuple[tuple[int, float], ...]) -> str:
    return f"{what:<8}" + "  ".join(f"{count}: {1e3 * seconds:.1f}" for count, seconds in curve) + " ms"
