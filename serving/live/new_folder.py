"""new_folder: a folder of weights that appears whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.live.errors import LiveError
from serving.units import GB

OURS = ("config.json", "stage0-of-*/config.json")
"""What shows that a folder holds a checkpoint or its pipeline parts."""


@contextmanager
def new_folder(out: Path, num_bytes: int, force: bool = False) -> Iterator[Path]:
    """A folder beside ``out`` to write ``num_bytes`` into; it becomes ``out`` when the block ends without an error.
    LiveError when ``out`` has something in it (with ``force``: something that is no checkpoint) or the disk is full."""
    target = out.resolve()
    _check_free(out, force)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_space(target.parent, num_bytes, out)
        partial = target.parent / f".{target.name}.{os.getpid()}.partial"
        partial.mkdir()
    except OSError as error:
        said = f"{error.strerror}: {error.filename}"
        raise LiveError(f"{out}: cannot be written ({said}); choose another folder") from error
    try:
        yield partial
        _put_in_place(partial, target)
    except OSError as error:
        raise LiveError(f"{out}: not written ({error.strerror}); nothing was left behind") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_free(out: Path, force: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise LiveError(f"{out}: is a file, expected the name of a new folder")
    if not any(out.iterdir()):
        return
    if not force:
        raise LiveError(f"{out}: exists and is not empty; choose another name, or replace it with --force")
    if not any(any(out.glob(pattern)) for pattern in OURS):
        raise LiveError(f"{out}: holds no checkpoint, so --force does not replace it; remove it yourself")


def _check_space(parent: Path, num_bytes: int, out: Path) -> None:
    free = shutil.disk_usage(parent).free
    if num_bytes > free:
        needs, has = f"{num_bytes / GB:.1f} GB", f"{free / GB:.1f} GB"
        raise LiveError(f"{out}: takes {needs}, {has} are free there; make room or choose another folder")


def _put_in_place(partial: Path, out: Path) -> None:
    """Rename, with what was there before moved aside until the new one stands."""
    if not out.exists():
        partial.rename(out)
        return
    before = partial.with_suffix(".replaced")
    out.rename(before)
    try:
        partial.rename(out)
    except OSError:
        before.rename(out)
        raise
    shutil.rmtree(before)
