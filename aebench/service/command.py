"""``aebench serve``, from its flags to its exit code."""

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from aebench.errors import AebenchError, UsageError
from aebench.machine import num_devices
from aebench.point_log import disk_error
from aebench.service.deployment import Serving, engine_of
from aebench.service.limits import Limits
from aebench.service.server import Listening, bind, listen, url_of
from aebench.service.service import Service
from aebench.settings import Tables, apply_setting, parts
from serving.live.checkpoint import find, models_root
from serving.live.errors import LiveError
from serving.live.fleet import WorkerOptions
from serving.units import GB


def run(options: dict[str, Any], echo: Callable[[str], object]) -> int:
    """Serve until a signal; the exit code."""
    listening = Listening(**{name: options[name] for name in ("host", "port", "drain_timeout", "access_log")})
    try:
        serving = _serving(options)
        with closing(bind(listening)) as bound:
            engine, model = engine_of(serving)
            limits = Limits(queue=options["max_queue"])
            service = Service(
                engine, [model], limits=limits, api_key=options["api_key"], starts_on_demand=serving.starts_on_demand
            )
            url = url_of(bound)
            with closing(engine):
                engine.start()
                return listen(service, bound, listening, lambda: echo(f"{model.name} is served at {url}/v1"))
    except LiveError as error:
        raise AebenchError(str(error)) from error


def _folder(model: str) -> Path:
    """The checkpoint's; a folder that is there is meant, and what is wrong with it is said when it is opened."""
    given, below = Path(model), models_root() / model
    return given if given.is_dir() and (given == below or not below.is_dir()) else find(model)


def _knobs(settings: Sequence[str]) -> Tables:
    """What ``--set policy.KEY=VALUE`` says, by knob."""
    tables: Tables = {"policy": {}, "grid": {}}
    for setting in settings:
        path, _ = parts(setting)
        if path[0] != "policy" or len(path) < 2:
            raise UsageError(f"--set {setting}: expected policy.KEY=VALUE, for example --set policy.interval=0.5")
        apply_setting(tables, setting)
    knobs: Tables = tables["policy"]
    return knobs


def _make_log_folder(path: Path) -> None:
    """LogError unless files can be written there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise disk_error(path, error, "--log-path") from error


def _serving(options: dict[str, Any]) -> Serving:
    folder = _folder(options["folder"])
    given = {name: options[name] for name in ("max_sequences", "max_step_tokens") if options[name] is not None}
    log_path: Path | None = options["log_path"]
    if log_path is not None:
        _make_log_folder(log_path)
    workers = WorkerOptions(
        device=options["device"],
        num_devices=num_devices(options["device"]),
        dtype=options["dtype"],
        threads=options["threads"],
        log_folder=log_path,
    )
    return Serving(
        folder=folder,
        name=options["name"] or folder.resolve().name,
        system=options["system"],
        num_instances=options["num_instances"],
        num_stages=options["num_stages"],
        knobs={**_knobs(options["settings"]), **given},
        kv_memory=options["kv_gb"] * GB,
        workers=workers,
    )
