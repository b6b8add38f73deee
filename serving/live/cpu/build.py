"""Compiles the kernels, C++ files in this folder, for this machine's processor, once; the result lies in the user's
cache, for all runs.

The control process compiles before it starts workers, which only look: a cold start never waits for a compiler.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from serving.units import Seconds

FOLDER = Path(__file__).parent
SOURCES = ("vectors.h", "matrices.cpp", "rows.cpp", "attention.cpp")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
WIDE = "-mprefer-vector-width=512"
"""On x86: compilers stop at 256 bits else, even where the processor has more."""
COMPILERS = ("c++", "g++", "clang++")
"""Tried in that order, after what the environment variable CXX names."""
COMPILE_LIMIT: Seconds = 120.0
"""It takes 1 s of a quiet core."""


@cache
def library_path() -> Path:
    """Where the compiled kernels of this source, for this processor, are or will be. Machines with other processors may
    share the folder."""
    key = hashlib.sha256()
    for part in (
        *((FOLDER / name).read_bytes() for name in SOURCES),
        " ".join(_flags()).encode(),
        _processor().encode(),
    ):
        key.update(part)
    return _cache_folder() / f"kernels-{key.hexdigest()[:16]}.so"


def build() -> str | None:
    """Compile unless it was done before. None, or why there are no kernels, in one line."""
    path = library_path()
    if path.exists():
        return None
    compilers = (os.environ.get("CXX"), *COMPILERS)
    compiler = next((found for name in compilers if name and (found := shutil.which(name))), None)
    if compiler is None:
        return f"no C++ compiler found ({', '.join(COMPILERS)}); install one, as in: apt install g++"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="building-", dir=path.parent) as folder:
            made = Path(folder) / path.name
            _compile(compiler, made)
            made.replace(path)  # whole or not at all; of two that compile at once, either
    except (OSError, subprocess.SubprocessError) as error:
        return f"{compiler} did not compile the CPU kernels: {_reason(error)}"
    return None


def _compile(compiler: str, made: Path) -> None:
    sources = [str(FOLDER / name) for name in SOURCES if name.endswith(".cpp")]
    command = [compiler, *_flags(), "-o", str(made), *sources]
    subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_LIMIT, stdin=subprocess.DEVNULL)


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        lines = [line for line in error.stderr.decode(errors="replace").splitlines() if "error" in line]
        return lines[0] if lines else f"it ended with exit code {error.returncode}"
    return str(error)


def _flags() -> tuple[str, ...]:
    return (*FLAGS, WIDE) if platform.machine() in ("x86_64", "AMD64") else FLAGS


def _processor() -> str:
    """What ``-march=native`` looks at, as far as Linux tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    names = ("model name", "flags", "Features", "CPU part")
    return platform.machine() + "".join(line for line in lines if line.startswith(names))


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "aebench"
