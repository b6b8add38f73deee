"""Compiling the kernels: once, whole or not at all, and never a reason for a run to fail."""

import os
import platform
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from numpy.random import _mt19937

from serving.live.cpu import build as building
from serving.live.cpu.build import build, compiled_library, library_path

LIBRARY = Path(_mt19937.__file__)
"""One that loads, in place of the kernels."""
COPIES = f'/bin/cat "{LIBRARY}" > "$out"'
"""What a good compiler does."""
REAL_COMPILER = shutil.which("g++")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of its own, and no compiler but those that a test puts into ``bin``."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CXX", raising=False)
    (tmp_path / "bin").mkdir()
    library_path.cache_clear()
    yield tmp_path
    library_path.cache_clear()


def compiler(folder: Path, script: str, name: str = "g++") -> None:
    """A compiler that is a shell script; ``$out`` is the file it is to make."""
    program = folder / "bin" / name
    program.write_text(f'#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done; out=$2\n{script}\n')
    program.chmod(0o755)


def made(folder: Path) -> list[str]:
    return [path.name for path in (folder / "cache").rglob("*") if path.is_file()]


def refuse(*_: Any, **__: Any) -> Any:
    raise PermissionError(13, "Permission denied")


def loaded() -> object:
    """The kernels as a worker gets them, or None; not remembered."""
    pytest.importorskip("torch", reason="needs the live extra: make test-live")
    from serving.live.cpu import kernels

    return kernels._kernels.__wrapped__()


def assert_no_cache(reason: str | None, why: str) -> None:
    assert reason is not None and "\n" not in reason
    assert reason.startswith("no cache for compiled kernels: ") and why in reason
    assert reason.endswith("; XDG_CACHE_HOME may name another folder")


def test_it_compiles_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler(folder, COPIES)
    assert build() is None
    assert made(folder) == [library_path().name]
    assert compiled_library() == library_path()
    assert library_path().parent == folder / "cache" / "aebench"
    monkeypatch.setattr(subprocess, "run", refuse)  # no process at all: a run does not wait
    assert build() is None


def test_the_compiler_that_the_environment_names_comes_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler(folder, "exit 1")
    compiler(folder, COPIES, name="mine")
    monkeypatch.setenv("CXX", "mine")
    assert build() is None
    assert library_path().read_bytes().startswith(LIBRARY.read_bytes())


def test_without_a_compiler(folder: Path) -> None:
    reason = build()
    assert reason is not None and "no C++ compiler found (c++, g++, clang++)" in reason and "apt install" in reason
    assert made(folder) == []


def test_a_compiler_that_cannot(folder: Path) -> None:
    compiler(folder, 'echo half > "$out"; echo "warning: x" >&2; echo "k.cpp:1: error: no omp.h" >&2; exit 1')
    reason = build()
    assert reason is not None and reason.endswith("did not compile the CPU kernels: k.cpp:1: error: no omp.h")
    assert made(folder) == [] and not library_path().exists()


def test_a_compiler_that_hangs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "COMPILE_LIMIT", 0.2)
    compiler(folder, "exec /bin/sleep 20")
    reason = build()
    assert reason is not None and "timed out" in reason
    assert made(folder) == []


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ('echo library > "$out"', "file too short"),
        (f'/usr/bin/head -c 8192 "{LIBRARY}" > "$out"', "ended with exit code -"),  # by a signal
    ],
)
def test_a_compiler_whose_library_does_not_load(
    folder: Path, monkeypatch: pytest.MonkeyPatch, script: str, why: str
) -> None:
    compiler(folder, script)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    (folder / "torch.py").touch()  # one that is quicker to import
    reason = build()
    assert reason is not None and "\n" not in reason
    assert reason.startswith(f"the CPU kernels that {folder}/bin/g++ compiled cannot be loaded: ") and why in reason
    assert made(folder) == []


@pytest.mark.skipif(REAL_COMPILER is None, reason="needs g++")
def test_a_library_may_need_what_only_pytorch_brings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*arguments: str) -> None:
        subprocess.run([str(REAL_COMPILER), "-shared", "-fPIC", *arguments], check=True, env={"PATH": os.defpath})

    (folder / "empty.cpp").touch()
    link(f"{folder}/empty.cpp", "-Wl,-soname,libonly.so", "-o", f"{folder}/libonly.so")
    link(f"{folder}/empty.cpp", "-Wl,--no-as-needed", f"-L{folder}", "-lonly", "-o", f"{folder}/needs.so")
    compiler(folder, f'/bin/cat {folder}/needs.so > "$out"')
    monkeypatch.setenv("PYTHONPATH", str(folder))
    (folder / "torch.py").write_text("")
    assert "libonly.so: cannot open shared object file" in (build() or "")
    (folder / "torch.py").write_text(f"import ctypes; ctypes.CDLL('{folder}/libonly.so')")
    assert build() is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_cannot_be_written(folder: Path) -> None:
    compiler(folder, COPIES)
    (folder / "cache").mkdir(mode=0o500)
    reason = build()
    assert reason is not None and "Permission denied" in reason


def test_a_cache_that_may_not_be_looked_into(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiler(folder, COPIES)
    for look in ("stat", "open"):
        allowed = getattr(Path, look)
        monkeypatch.setattr(
            Path, look, lambda path, *a, of=allowed, **k: (refuse if path.suffix == ".so" else of)(path, *a, **k)
        )
    assert_no_cache(build(), "[Errno 13] Permission denied")
    assert loaded() is None
    assert "the compiled CPU kernels cannot be used: [Errno 13] Permission denied" in capsys.readouterr().err


def test_a_cache_whose_name_is_too_long(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler(folder, COPIES)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / ("x" * 300)))
    assert_no_cache(build(), "File name too long")
    assert loaded() is None


def test_a_user_without_a_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler(folder, COPIES)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)  # knows nobody: KeyError
    assert_no_cache(build(), "this user has no home folder")
    assert loaded() is None


def test_a_cache_whose_place_is_taken(folder: Path) -> None:
    compiler(folder, COPIES)
    (folder / "cache").write_text("a file")
    assert_no_cache(build(), f"Not a directory: '{library_path().parent}'")


@pytest.mark.skipif(not hasattr(os, "ST_NOEXEC"), reason="this system does not tell")
def test_a_cache_from_which_nothing_may_be_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler(folder, COPIES)
    monkeypatch.setattr(os, "statvfs", lambda _path: SimpleNamespace(f_flag=os.ST_NOEXEC | os.ST_NOSUID))
    assert_no_cache(build(), f"{folder}/cache/aebench is on a file system that is mounted noexec")
    assert made(folder) == [] and loaded() is None


def test_other_sources_processors_and_systems_have_other_libraries(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert folder.exists()
    names = [library_path().name]
    monkeypatch.setattr(building, "_processor", lambda: "another")
    library_path.cache_clear()
    names.append(library_path().name)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "1.0"))
    library_path.cache_clear()
    names.append(library_path().name)
    for name in building.SOURCES:
        (folder / name).write_text("// changed")
    monkeypatch.setattr(building, "FOLDER", folder)
    library_path.cache_clear()
    names.append(library_path().name)
    assert len(set(names)) == 4


WHOLE = LIBRARY.read_bytes()
DAMAGES = {
    "empty": lambda _sealed: b"",
    "zeros": lambda sealed: bytes(len(sealed)),
    "half": lambda sealed: sealed[: len(sealed) // 2],
    "a byte less": lambda sealed: sealed[:-1],
    "a bit": lambda sealed: sealed[:5000] + bytes([sealed[5000] ^ 1]) + sealed[5001:],
    "no digest": lambda _sealed: WHOLE,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_library_is_compiled_again(folder: Path, damage: Any) -> None:
    compiler(folder, COPIES)
    assert build() is None
    sealed = library_path().read_bytes()
    library_path().write_bytes(damage(sealed))
    assert compiled_library() is None
    assert build() is None
    assert library_path().read_bytes() == sealed and made(folder) == [library_path().name]


def test_the_disk_has_a_library_before_its_name_has(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int | str] = []
    synced, replaced = os.fsync, Path.replace

    def fsync(file: int) -> None:
        sizes.append(os.fstat(file).st_size)
        synced(file)

    def replace(path: Path, target: Path) -> Path:
        sizes.append("replaced")
        return replaced(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    compiler(folder, COPIES)
    assert build() is None
    assert sizes == [library_path().stat().st_size, "replaced"] == [len(WHOLE) + 32, "replaced"]


LOADS = """
import torch
from serving.live.linear import Linear
print(Linear(torch.eye(3))(torch.ones(1, 3)).tolist())
"""


@pytest.mark.usefixtures("folder")
def test_half_a_library_does_not_end_a_worker() -> None:
    pytest.importorskip("torch", reason="needs the live extra: make test-live")
    library_path().parent.mkdir(parents=True)
    library_path().write_bytes(WHOLE[:8192])
    assert "no C++ compiler found" in (build() or "")  # the run says why
    ended = subprocess.run([sys.executable, "-c", LOADS], capture_output=True, text=True, check=True)
    assert ended.stdout == "[[1.0, 1.0, 1.0]]\n"


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("content", [b"no library", WHOLE], ids=["no library", "without kernels"])
def test_a_whole_file_that_has_no_kernels(content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    library_path().parent.mkdir(parents=True)
    library_path().write_bytes(content)
    building._seal(library_path())
    assert loaded() is None
    assert "the compiled CPU kernels cannot be used: " in capsys.readouterr().err
