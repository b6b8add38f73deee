"""Checkout: a copy of the shipped experiments and figures that a test may spoil, and the command line on it."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner, Result

from aebench.catalog import ROOT, ROOT_VARIABLE
from aebench.cli import cli

Case = tuple[str, str, str]
"""What to replace, by what, and what is said behind the file's name (all of it, where that is another file's)."""
Cases = list[Case]


@dataclass(frozen=True, slots=True)
class Checkout:
    """A folder with ``experiments/`` and ``figures/``, and an empty place for logs beside it."""

    root: Path
    logs: Path

    def path(self, name: str) -> Path:
        """A file of HydraServe's by its name."""
        (found,) = self.root.glob(f"*/hydraserve/{name}")
        return found

    def aebench(self, *words: str) -> Result:
        """What the command line says in this process; nothing but a clean exit is let through."""
        result = CliRunner().invoke(cli, words, prog_name="aebench", env={ROOT_VARIABLE: str(self.root)})
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def run(self, *words: str) -> Result:
        """``aebench run`` into this checkout's log folder, with one worker unless the words say how many."""
        jobs = () if "--jobs" in words else ("--jobs", "1")
        return self.aebench("run", *words, *jobs, "--log-path", str(self.logs))

    def start(self, *words: str) -> "subprocess.Popen[str]":
        """``aebench run`` into this checkout's log folder, in a process of its own."""
        command = [sys.executable, "-m", "aebench", "run", *words, "--log-path", str(self.logs)]
        environment = {**os.environ, ROOT_VARIABLE: str(self.root)}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def refusal(self, result: Result) -> str:
        """The one message of a command that was refused with exit code 2, its folders abbreviated."""
        assert result.exit_code == 2, result.output
        return self.short(result.stderr.removesuffix("\n"))

    def spoilt(self, name: str, content: bytes) -> str:
        """What ``aebench run figure8`` says when the file holds that, behind the file's name; it may not write."""
        path = self.path(name)
        before = path.read_bytes()
        path.write_bytes(content)
        try:
            said = self.refusal(self.run("figure8"))
        finally:
            path.write_bytes(before)
        assert not self.logs.exists()
        return said.removeprefix(f"Error: {self.short(str(path))}")

    def check_case(self, name: str, case: Case) -> None:
        """The case's change of the file is refused in the case's words."""
        old, new, said = case
        text = self.path(name).read_text(encoding="utf-8")
        assert old in text, f"{name} does not hold {old!r}"
        spoilt = text.replace(old, new, 1) if old else text + new
        assert self.spoilt(name, spoilt.encode()) == said

    def short(self, text: str) -> str:
        """The text with the names of temporary folders abbreviated."""
        return text.replace(str(self.root), "ROOT").replace(str(self.logs), "LOGS")

    def written(self) -> list[str]:
        """Every file below the log folder."""
        return sorted(str(path.relative_to(self.logs)) for path in self.logs.rglob("*") if path.is_file())

    def newest(self, experiment: str) -> Path:
        """The folder of the experiment's newest run."""
        return max((self.logs / "hydraserve" / experiment).glob("[!.]*"))


def make_checkout(folder: Path) -> Checkout:
    """A fresh copy below ``folder``."""
    for name in ("experiments", "figures"):
        shutil.copytree(ROOT / name, folder / "root" / name)
    return Checkout(root=folder / "root", logs=folder / "logs")
