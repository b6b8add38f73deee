"""Catalog: reads ``experiments/`` and ``figures/`` and resolves the names that a user types."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from aebench.calibration import Calibration
from aebench.declared import Declared
from aebench.errors import NotFoundError, SpecError, near_misses
from aebench.experiment import Experiment
from aebench.figure_tables import FigureFile
from aebench.settings import merge
from aebench.toml_files import PaperFile, check, read_toml
from aebench.world import PAPER, World

if TYPE_CHECKING:
    from aebench.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
"""The checkout: the folder that holds ``experiments/`` and ``figures/``."""

LIVE = ".live"
"""Ends the stems of a figure's files for runs on this machine: ``figure7.live.claim``."""

ROOT_VARIABLE = "AEBENCH_ROOT"
"""Environment variable that names another folder to read ``experiments/`` and ``figures/`` from."""


def root_folder() -> Path:
    """The folder that ``AEBENCH_ROOT`` names, the checkout where it is not set."""
    named = os.environ.get(ROOT_VARIABLE)
    if not named:
        return ROOT
    if not Path(named).is_dir():
        raise NotFoundError(f"{ROOT_VARIABLE}={named}: expected a folder that holds experiments/ and figures/")
    return Path(named)


@dataclass(frozen=True, slots=True)
class _Papers:
    """What the files of all papers say."""

    papers: dict[str, PaperFile] = field(default_factory=dict)
    figures: dict[str, Declared] = field(default_factory=dict)
    broken: dict[str, SpecError] = field(default_factory=dict)


@dataclass(frozen=True)
class Catalog:
    """Everything that is declared below one root."""

    root: Path = field(default_factory=root_folder)

    @property
    def papers(self) -> dict[str, PaperFile]:
        """Papers by folder name, in order; without those of ``broken``."""
        return self._read.papers

    @property
    def figures(self) -> dict[str, Declared]:
        """Figures by id, in printed order."""
        return self._read.figures

    @property
    def broken(self) -> dict[str, SpecError]:
        """What is wrong with the files of a paper that cannot be read, by its folder's name."""
        return self._read.broken

    @cached_property
    def _read(self) -> "_Papers":
        paths = sorted((self.root / "experiments").glob("*/paper.toml"))
        if not paths:
            raise NotFoundError(
                f"{self.root}: no experiments/*/paper.toml here. aebench runs from a checkout: pip install -e ."
            )
        read = _Papers()
        for path in paths:
            name = path.parent.name
            try:
                file, figures = check(PaperFile, read_toml(path), path), self._figures_of(name)
                self._check_names(path, file, figures)
            except SpecError as error:
                read.broken[name] = error
            else:
                read.papers[name] = file
                read.figures.update(figures)
        self._check_owners(read.papers)
        return read

    def _figures_of(self, paper: str) -> dict[str, Declared]:
        paths = [path for path in (self.root / "figures" / paper).glob("*.toml") if not path.stem.endswith(LIVE)]
        ids = [(f"{paper}/{path.stem}", path) for path in sorted(paths, key=_printed_order)]
        return {name: Declared(name, path, check(FigureFile, read_toml(path), path)) for name, path in ids}

    def resolve(self, names: Sequence[str]) -> list[Declared]:
        """The figures that names mean: ids, unique or owned bare names, topics, papers, experiments, ``all``. SpecError
        where one may mean something of a paper that cannot be read."""
        figures: dict[str, Declared] = {}
        for name in names:
            self._check_readable(name)
            for figure_id in self._meant(name):
                figures[figure_id] = self.figures[figure_id]
        return list(figures.values())

    def _check_readable(self, name: str) -> None:
        for paper, error in self.broken.items():
            is_of_paper = name in ("all", paper) or name.startswith(f"{paper}/")
            if is_of_paper or (self.root / "figures" / paper / f"{name}.toml").exists():
                raise error

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
        for key in ("paper", "paper_bars"):
            tables.pop(key, None)
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
        from aebench.figure_files import read_figure

        return read_figure(declared, experiment, self.calibration(declared.paper))

    def _meant(self, name: str) -> list[str]:
        if name == "all":
            return list(self.figures)
        if name in self.figures:
            return [name]
        if name in self.papers:
            return [figure_id for figure_id in self.figures if figure_id.startswith(f"{name}/")]
        if meaning := self._by_topic(name) or self._by_bare_name(name) or self._by_experiment(name):
            return meaning
        for error in self.broken.values():
            raise error  # it may be a name of that paper's
        raise NotFoundError(f"no figure, paper or topic {name!r}.{near_misses(name, self.known_names())}")

    def is_group(self, name: str) -> bool:
        """Whether a name stands for whatever it holds: ``all``, a paper, a topic of several figures."""
        if name in self.figures or len(self._meant(name)) == 1:
            return False
        return name == "all" or name in self.papers or bool(self._by_topic(name))

    def known_names(self) -> list[str]:
        """Every name that ``resolve`` takes, ids first; a bare name of a figure where it is owned, or the only one."""
        names = [figure_id.partition("/")[2] for figure_id in self.figures]
        owned = [name for file in self.papers.values() for name in file.aliases]
        bare = {name: None for name in names if name in owned or names.count(name) == 1}
        topics = {topic: None for file in self.papers.values() for topic in file.topics}
        own = [f"{paper}/{topic}" for paper, file in self.papers.items() for topic in file.topics]
        return list(dict.fromkeys([*self.figures, *own, *bare, *self.papers, *topics, "all"]))

    def _by_topic(self, name: str) -> list[str]:
        """Of one paper's topic, ``paper/topic``, or of all papers' topics of a name."""
        return [
            f"{paper}/{figure}"
            for paper, file in self.papers.items()
            for topic, figures in file.topics.items()
            for figure in (figures if name in (topic, f"{paper}/{topic}") else ())
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

    def _check_names(self, path: Path, file: PaperFile, figures: Mapping[str, Declared]) -> None:
        """What a paper owns or a topic of it holds exists, and so do its figures' experiments."""
        paper = path.parent.name
        named = {
            "aliases": file.aliases,
            "own": file.own,
            **{f"topics.{key}": names for key, names in file.topics.items()},
        }
        for key, names in named.items():
            for name in names:
                if f"{paper}/{name}" not in figures:
                    raise SpecError(path, key, f"there is no figures/{paper}/{name}.toml")
        known = [path.stem for path in sorted(path.parent.glob("*.toml"))]
        for declared in figures.values():
            if declared.file.experiment not in known:
                close = near_misses(declared.file.experiment, known)
                message = f"there is no experiments/{declared.experiment_id}.toml.{close}"
                raise SpecError(declared.path, "experiment", message)

    def _check_owners(self, papers: Mapping[str, PaperFile]) -> None:
        """Two papers must not own one bare name."""
        owner: dict[str, str] = {}
        for paper, file in papers.items():
            for name in file.aliases:
                if name in owner:
                    path = self.root / "experiments" / paper / "paper.toml"
                    raise SpecError(path, "aliases", f"{name!r} is owned by {owner[name]} already")
                owner[name] = paper


def _printed_order(path: Path) -> tuple[str, int, str]:
    digits = "".join(character for character in path.stem if character.isdigit())
    return path.stem.rstrip("0123456789ab"), int(digits or 0), path.stem
