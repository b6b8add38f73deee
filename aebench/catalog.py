"""Catalog: reads ``experiments/`` and ``figures/`` and resolves the names that a user types."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from aebench.calibration import Calibration
from aebench.claim_syntax import key_text
from aebench.errors import NotFoundError, SpecError, near_misses
from aebench.experiment import Experiment
from aebench.paper_points import read_paper_points
from aebench.settings import merge
from aebench.toml_files import FigureFile, PaperFile, check, read_toml
from aebench.world import PAPER, World

if TYPE_CHECKING:
    import pandas as pd

    from aebench.claims import ClaimFile
    from aebench.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
"""The checkout: the folder that holds ``experiments/`` and ``figures/``."""

LIVE = ".live"
"""Ends the stems of a figure's files for runs on this machine: ``figure7.live.claim``."""

ROOT_VARIABLE = "AEBENCH_ROOT"
"""Environment variable that names another folder to read ``experiments/`` and ``figures/`` from."""


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


def root_folder() -> Path:
    """The folder that ``AEBENCH_ROOT`` names, the checkout where it is not set."""
    named = os.environ.get(ROOT_VARIABLE)
    if not named:
        return ROOT
    if not Path(named).is_dir():
        raise NotFoundError(f"{ROOT_VARIABLE}={named}: expected a folder that holds experiments/ and figures/")
    return Path(named)


@dataclass(frozen=True)
class Catalog:
    """Everything that is declared below one root."""

    root: Path = field(default_factory=root_folder)

    @cached_property
    def papers(self) -> dict[str, PaperFile]:
        """Papers by folder name, in order."""
        folders = sorted((self.root / "experiments").glob("*/paper.toml"))
        if not folders:
            raise NotFoundError(
                f"{self.root}: no experiments/*/paper.toml here. aebench runs from a checkout: pip install -e ."
            )
        return {path.parent.name: check(PaperFile, read_toml(path), path) for path in folders}

    @cached_property
    def figures(self) -> dict[str, Declared]:
        """Figures by id, in printed order."""
        found = {}
        for paper in self.papers:
            paths = (self.root / "figures" / paper).glob("*.toml")
            for path in sorted((path for path in paths if not path.stem.endswith(LIVE)), key=_printed_order):
                figure_id = f"{paper}/{path.stem}"
                found[figure_id] = Declared(figure_id, path, check(FigureFile, read_toml(path), path))
        self._check_names(found)
        return found

    def resolve(self, names: Sequence[str]) -> list[Declared]:
        """The figures that names mean: ids, unique or owned bare names, topics, papers, experiments, ``all``."""
        figures: dict[str, Declared] = {}
        for name in names:
            for figure_id in self._meant(name):
                figures[figure_id] = self.figures[figure_id]
        return list(figures.values())

    def experiment(
        self, experiment_id: str, scale: str = "paper", settings: Sequence[str] = (), world: World = PAPER
    ) -> Experiment:
        """An experiment by id, as it is in a world."""
        paper, _, name = experiment_id.partition("/")
        path = self.root / "experiments" / paper / f"{name}.toml"
        return Experiment.read(path, self.calibration(paper), scale, settings, world)

    def figure_in(self, declared: Declared, world: World) -> Declared:
        """The figure's files for a world. One that is not the paper's has claims and points of its own, if any:
        ``figureN.live.toml`` is merged over the figure's file, less the paper's points."""
        if not world.is_local:
            return declared
        path = declared.path.with_name(f"{declared.name}{LIVE}.toml")
        tables = read_toml(declared.path)
        tables.pop("paper", None)
        merge(tables, read_toml(path) if path.exists() else {})
        return replace(declared, path=path, file=check(FigureFile, tables, path))

    def calibration(self, paper: str) -> Calibration:
        """What the paper's points were used for."""
        calibration = Calibration.read(self.root / "experiments" / paper / "calibration.toml")
        for name, group in calibration.file.points.items() if calibration.file else ():
            if f"{paper}/{group.figure}" not in self.figures:
                raise SpecError(calibration.path, f"points.{name}.figure", f"there is no {paper}/{group.figure}")
        return calibration

    def figure(self, declared: Declared, experiment: Experiment) -> "Figure":
        """A figure with its points, claims and notes; ``declared`` and ``experiment`` are of one world."""
        from aebench.figure import Figure, PlotSpec
        from aebench.metrics import METRICS

        plot = declared.file.plot.model_dump()
        order = {key: [str(value) for value in values] for key, values in experiment.file.grid.items()}
        keys = [plot[place] for place in ("panel", "x", "series") if plot[place] is not None]
        for key in keys:
            if key not in experiment.file.grid:
                known = ", ".join(experiment.file.grid)
                raise SpecError(declared.path, "plot", f"the experiment has no grid key {key!r}. Known: {known}")
        if plot["y"] not in METRICS:
            known = f"{near_misses(plot['y'], METRICS)} Known: {', '.join(METRICS)}"
            raise SpecError(declared.path, "plot.y", f"unknown metric {plot['y']!r}.{known}")
        points = self._paper_points(declared, experiment)
        if not experiment.world.is_local:
            printed = {} if points is None else {key: points[key].tolist() for key in experiment.grid_keys}
            self.calibration(declared.paper).check_points(declared.figure_id, printed)
        notes = declared.path.with_suffix(".md")
        return Figure(
            figure_id=declared.figure_id,
            paper=declared.paper,
            shows=declared.file.shows,
            experiment=declared.experiment_id,
            plot=PlotSpec(**plot, labels=declared.file.labels, order=order),
            paper_points=points,
            claims=self.claims(declared),
            notes=notes.read_text(encoding="utf-8") if notes.exists() else None,
            folder=declared.path.parent,
            grid=[{key: str(value) for key, value in cell.items()} for cell in experiment.cells()],
            paper_label=declared.file.paper_label,
            orientation=declared.file.orientation,
        )

    def claims(self, declared: Declared) -> "ClaimFile":
        """The figure's claims; none when there is no such file."""
        from aebench.claims import parse

        path = declared.path.with_suffix(".claim")
        if not path.exists():
            return parse("", path)
        try:
            return parse(path.read_text(encoding="utf-8"), path)
        except UnicodeDecodeError as error:
            raise SpecError(path, "", f"not UTF-8 text (byte {error.start})") from error

    def _paper_points(self, declared: Declared, experiment: Experiment) -> "pd.DataFrame | None":
        if declared.file.paper is None:
            return None
        path = declared.path.parent / declared.file.paper
        columns = [*experiment.grid_keys, declared.file.plot.y]
        points = read_paper_points(path, columns, declared.file.plot.y)
        if not declared.file.orientation:
            return points
        grid = experiment.file.grid.items()  # of hardware that this run did not measure there is nothing to show
        return _among(points, {key: [key_text(value) for value in values] for key, values in grid})

    def _meant(self, name: str) -> list[str]:
        if name == "all":
            return list(self.figures)
        if name in self.figures:
            return [name]
        if name in self.papers:
            return [figure_id for figure_id in self.figures if figure_id.startswith(f"{name}/")]
        for meaning in (self._by_topic(name), self._by_bare_name(name), self._by_experiment(name)):
            if meaning:
                return meaning
        raise NotFoundError(f"no figure, paper or topic {name!r}.{near_misses(name, self.known_names())}")

    def is_group(self, name: str) -> bool:
        """Whether a name stands for whatever it holds: ``all``, a paper, a topic of several figures."""
        if name in self.figures or len(self._meant(name)) == 1:
            return False
        return name == "all" or name in self.papers or any(name in paper.topics for paper in self.papers.values())

    def known_names(self) -> list[str]:
        """Every name that ``resolve`` takes, ids first."""
        bare = {figure_id.partition("/")[2]: None for figure_id in self.figures}
        topics = [topic for paper in self.papers.values() for topic in paper.topics]
        return [*self.figures, *bare, *self.papers, *topics, "all"]

    def _by_topic(self, name: str) -> list[str]:
        return [
            f"{paper}/{figure}"
            for paper, file in self.papers.items()
            for figure in file.topics.get(name, [])
            if f"{paper}/{figure}" in self.figures
        ]

    def _by_bare_name(self, name: str) -> list[str]:
        found = [figure_id for figure_id in self.figures if figure_id.partition("/")[2] == name]
        owners = [paper for paper, file in self.papers.items() if name in file.aliases]
        if owners:
            return [f"{owners[0]}/{name}"]
        if len(found) > 1:
            raise NotFoundError(
                f"{name!r} is in {len(found)} papers: {', '.join(found)}. "
                f"Say which, for example: aebench run {found[0]}"
            )
        return found

    def _by_experiment(self, name: str) -> list[str]:
        return [
            figure_id
            for figure_id, declared in self.figures.items()
            if name in (declared.experiment_id, declared.file.experiment)
        ]

    def _check_names(self, figures: dict[str, Declared]) -> None:
        """Two papers must not own one bare name; what is owned or a topic's must exist."""
        owner: dict[str, str] = {}
        for paper, file in self.papers.items():
            path = self.root / "experiments" / paper / "paper.toml"
            for name in file.aliases:
                if name in owner:
                    raise SpecError(path, "aliases", f"{name!r} is owned by {owner[name]} already")
                owner[name] = paper
            for key, names in {
                "aliases": file.aliases,
                **{f"topics.{key}": v for key, v in file.topics.items()},
            }.items():
                for name in names:
                    if f"{paper}/{name}" not in figures:
                        raise SpecError(path, key, f"there is no figures/{paper}/{name}.toml")
        for declared in figures.values():
            folder = self.root / "experiments" / declared.paper
            if not (folder / f"{declared.file.experiment}.toml").exists():
                close = near_misses(declared.file.experiment, [path.stem for path in sorted(folder.glob("*.toml"))])
                message = f"there is no experiments/{declared.experiment_id}.toml.{close}"
                raise SpecError(declared.path, "experiment", message)


def _among(points: "pd.DataFrame", grid: Mapping[str, Sequence[str]]) -> "pd.DataFrame | None":
    """The points on the grid; None: there is none."""
    for key, values in grid.items():
        points = points[points[key].map(key_text).isin(values)]
    return points if len(points) else None


def _printed_order(path: Path) -> tuple[str, int]:
    digits = "".join(character for character in path.stem if character.isdigit())
    return path.stem.rstrip("0123456789ab"), int(digits or 0)
