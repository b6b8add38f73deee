"""``aebench storage``: a storage server in the foreground."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import click

from aebench.errors import UsageError


@click.command("storage")
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on; there is no authentication."
)
@click.option("--port", default=8600, show_default=True, type=click.IntRange(0, 65535), help="0: any free one.")
@click.option("--server-gbps", type=click.FloatRange(0, min_open=True), help="Gb/s of the server's link [no limit]")
@click.option("--link-gbps", type=click.FloatRange(0, min_open=True), help="Gb/s of each client's link [no limit]")
@click.option("--hold/--no-hold", default=True, show_default=True, help="Read all weights into memory first.")
def storage(
    folders: tuple[Path, ...],
    host: str,
    port: int,
    server_gbps: float | None,
    link_gbps: float | None,
    hold: bool,
) -> None:
    """Serve byte ranges of the checkpoints in DIR... over TCP, each under its folder's name.

    Ctrl-C ends it.
    """
    from serving.live.storage import LinkRates, StorageServer, open_library
    from serving.units import Gbps

    rates = LinkRates(
        server=None if server_gbps is None else server_gbps * Gbps, link=None if link_gbps is None else link_gbps * Gbps
    )
    with _as_usage_error():
        library = open_library(_by_name(folders), hold=hold)
        server = StorageServer(library, rates, host, port)
    click.echo(f"serving {', '.join(library.models)} on {server.address[0]}:{server.address[1]}")
    try:
        _wait_for_a_signal()
    finally:
        server.close()


def _by_name(folders: tuple[Path, ...]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for folder in folders:
        name = folder.resolve().name
        if name in named:
            raise UsageError(f"{named[name]} and {folder} would both be served as {name!r}; rename one of the folders")
        named[name] = folder
    return named


@contextlib.contextmanager
def _as_usage_error() -> Iterator[None]:
    from serving.live.errors import LiveError

    try:
        yield
    except LiveError as error:
        raise UsageError(str(error)) from error


def _wait_for_a_signal() -> None:
    """Signals raise in the main thread, out of this wait; nothing is ever received on the pair."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.recv(1)
