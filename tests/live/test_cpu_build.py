"""Compiling the kernels: once, whole or not at all, and never a reason for a run to fail."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.live.cpu import build as building
from serving.live.cpu.build import build, library_path


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


def test_it_compiles_once(folder: Path) -> None:
    compiler(folder, f'echo . >> {folder}/calls; echo library > "$out"')
    assert build() is None and build() is None
    assert (folder / "calls").read_text() == ".\n"
    assert made(folder) == [library_path().name]
    assert library_path().parent == folder / "cache" / "aebench"


def test_the_compiler_that_the_environment_names_comes_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler(folder, "exit 1")
    compiler(folder, 'echo other > "$out"', name="mine")
    monkeypatch.setenv("CXX", "mine")
    assert build() is None
    assert library_path().read_text() == "other\n"


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


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_cannot_be_written(folder: Path) -> None:
    compiler(folder, 'echo library > "$out"')
    (folder / "cache").mkdir(mode=0o500)
    reason = build()
    assert reason is not None and "Permission denied" in reason


def test_a_cache_whose_place_is_taken(folder: Path) -> None:
    compiler(folder, 'echo library > "$out"')
    (folder / "cache").write_text("a file")
    reason = build()
    assert reason is not None and "did not compile" in reason


def test_other_sources_and_processors_have_other_libraries(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert folder.exists()
    names = [library_path().name]
    monkeypatch.setattr(building, "_processor", lambda: "another")
    library_path.cache_clear()
    names.append(library_path().name)
    for name in building.SOURCES:
        (folder / name).write_text("// changed")
    monkeypatch.setattr(building, "FOLDER", folder)
    library_path.cache_clear()
    names.append(library_path().name)
    assert len(set(names)) == 3


LOADS = """
import torch
from serving.live.linear import Linear
print(Linear(torch.eye(3))(torch.ones(1, 3)).tolist())
"""


def test_a_library_that_is_damaged_is_not_used(folder: Path) -> None:
    pytest.importorskip("torch", reason="needs the live extra: make test-live")
    compiler(folder, 'echo "no library" > "$out"')
    assert build() is None
    ended = subprocess.run([sys.executable, "-c", LOADS], capture_output=True, text=True, check=True)
    assert ended.stdout == "[[1.0, 1.0, 1.0]]\n"
    assert "the compiled CPU kernels cannot be used" in ended.stderr
