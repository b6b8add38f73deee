"""``aebench serve``: a checkpoint behind OpenAI's API."""

import sys
from pathlib import Path
from typing import Any

import click

COUNT = click.IntRange(min=1)


@click.command()
@click.option("--model", "folder", required=True, metavar="MODEL", help="A checkpoint's folder, or its name.")
@click.option("--name", help="What clients call the model  [default: the folder's name].")
@click.option("--system", default="fixed_instances", show_default=True, help="A wrong one lists all.")
@click.option("--replicas", "num_instances", type=COUNT, default=1, show_default=True, help="Instances, or the most.")
@click.option("--stages", "num_stages", type=COUNT, default=1, show_default=True, help="Pipeline stages of each.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="[default: the checkpoint's].")
@click.option("--threads", type=COUNT, default=1, show_default=True, help="CPU threads of each worker process.")
@click.option("--max-sequences", type=COUNT, help="Of one instance at a time.")
@click.option("--max-step-tokens", type=COUNT, help="Of one forward pass.")
@click.option("--set", "settings", multiple=True, metavar="policy.KEY=VALUE", help="Change a knob of the system.")
@click.option("--kv-gb", type=click.FloatRange(min=0, min_open=True), default=2.0, show_default=True)
@click.option("--max-queue", type=COUNT, default=256, show_default=True, help="Sequences that wait; more get 429.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any that is free.")
@click.option("--api-key", envvar="AEBENCH_API_KEY", help="Better in AEBENCH_API_KEY, which `ps` does not show.")
@click.option("--drain-timeout", type=click.FloatRange(min=0), default=30.0, show_default=True, help="Seconds.")
@click.option("--access-log", is_flag=True, help="A line a request, on stderr.")
@click.option("--log-path", type=click.Path(path_type=Path, file_okay=False), help="For the workers' output.")
def serve(**options: Any) -> None:
    """Serve a checkpoint over HTTP: OpenAI's /v1/completions and /v1/chat/completions.

    SIGTERM or Ctrl-C lets the requests under way finish; a second one does not.
    """
    from aebench.machine import check_live, check_service

    check_live("aebench serve", options["device"])
    check_service("aebench serve")
    from aebench.service.command import run

    sys.exit(run(options, click.echo))
