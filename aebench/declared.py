"""Declared: a figure's files, before its points and claims are read."""

from dataclasses import dataclass
from pathlib import Path

from aebench.figure_tables import FigureFile


@dataclass(frozen=True)
class Declared:
    """A figure's files, before its points and claims are read."""

    figure_id: str
    path: Path
    file: FigureFile

    @property
    def paper(self) -> str:
        """Folder name of the paper."""
        return self.figure_id.partition("/")[0]

    @property
    def name(self) -> str:
        """``figureN``."""
        return self.figure_id.partition("/")[2]

    @property
    def experiment_id(self) -> str:
        """``paper/name`` of the experiment that it draws."""
        return f"{self.paper}/{self.file.experiment}"
