"""Compiles the kernels, C++ files in this folder, for this machine's processor, once; the result lies in the user's
cache, for all runs.

The control process compiles before it starts workers, which only look: a cold start never waits for a compiler.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
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
DIGEST = hashlib.sha256
"""Of a library, which it ends with: loaders do not look behind what an ELF file's headers name, and one file is
replaced at once, which two are not."""
LOAD = """
import contextlib, ctypes, sys
try:
    ctypes.CDLL(sys.argv[1])
except OSError:
    with contextlib.suppress(ImportError):
        import torch  # has an OpenMP with it, which the system may lack
    ctypes.CDLL(sys.argv[1])
"""
"""Loads a library as workers do. In a process of its own: a bad one may end it, and the control process has no use for
an OpenMP, least of all for another than PyTorch's."""


def compiled_library() -> Path | None:
    """The compiled kernels; None where there are none, or they are not whole. Loading half a library would end the
    process by a signal. OSError where the cache may not be looked into, or nothing in it be loaded."""
    path = library_path()
    try:
        if os.statvfs(path.parent).f_flag & getattr(os, "ST_NOEXEC", 0):
            raise OSError(f"{path.parent} is on a file system that is mounted noexec")
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    size = DIGEST().digest_size
    return path if content[-size:] == DIGEST(content[:-size]).digest() else None


@cache
def library_path() -> Path:
    """Where the compiled kernels of this source, for this processor and C library, are or will be. Machines with others
    may share the folder. OSError where there is no place for a cache."""
    key = hashlib.sha256()
    for part in (
        *((FOLDER / name).read_bytes() for name in SOURCES),
        " ".join(_flags()).encode(),
        _processor().encode(),
        " ".join(platform.libc_ver()).encode(),
    ):
        key.update(part)
    return _cache_folder() / f"kernels-{key.hexdigest()[:16]}.so"


def build() -> str | None:
    """Compile unless a whole library is there. None, or why there are no kernels, in one line."""
    try:
        library_path().parent.mkdir(parents=True, exist_ok=True)
        if compiled_library() is not None:
            return None
    except OSError as error:
        return f"no cache for compiled kernels: {error}; XDG_CACHE_HOME may name another folder"
    compilers = (os.environ.get("CXX"), *COMPILERS)
    compiler = next((found for name in compilers if name and (found := shutil.which(name))), None)
    if compiler is None:
        return f"no C++ compiler found ({', '.join(COMPILERS)}); install one, as in: apt install g++"
    try:
        return _build(compiler, library_path())
    except (OSError, subprocess.SubprocessError) as error:
        return f"{compiler} did not compile the CPU kernels: {_reason(error)}"


def _build(compiler: str, path: Path) -> str | None:
    with tempfile.TemporaryDirectory(prefix="building-", dir=path.parent) as folder:
        made = Path(folder) / path.name
        _compile(compiler, made)
        if reason := _try_to_load(made):
            return f"the CPU kernels that {compiler} compiled cannot be loaded: {reason}"
        _seal(made)
        made.replace(path)  # whole or not at all; of two that compile at once, either
    return None


def _compile(compiler: str, made: Path) -> None:
    sources = [str(FOLDER / name) for name in SOURCES if name.endswith(".cpp")]
    command = [compiler, *_flags(), "-o", str(made), *sources]
    subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_LIMIT, stdin=subprocess.DEVNULL)


def _try_to_load(made: Path) -> str | None:
    """Why it cannot be, or None."""
    command = [sys.executable, "-P", "-c", LOAD, str(made)]
    ended = subprocess.run(command, capture_output=True, timeout=COMPILE_LIMIT, stdin=subprocess.DEVNULL)
    if ended.returncode == 0:
        return None
    lines = ended.stderr.decode(errors="replace").splitlines()
    return lines[-1] if lines else f"the process that tried ended with exit code {ended.returncode}"


def _seal(made: Path) -> None:
    """Add the digest, and wait until the disk has all of it: after a power loss, a file that was replaced before that
    may be empty."""
    digest = DIGEST(made.read_bytes()).digest()
    with made.open("ab") as file:
        file.write(digest)
        file.flush()
        os.fsync(file.fileno())


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
    try:
        return (Path(root) if root else Path.home() / ".cache") / "aebench"
    except RuntimeError as error:  # no HOME, and a user whom the system does not know
        raise OSError("this user has no home folder") from error
