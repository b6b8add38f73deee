"""Calibration: which paper points set which parameters, declared in ``experiments/<paper>/calibration.toml``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aebench.claim_syntax import key_text
from aebench.errors import SpecError, near_misses
from aebench.point import GridValue
from aebench.strict import Strict
from aebench.toml_files import check, read_toml


class CalibrationPoints(Strict):
    """Paper's points that a calibration used: all of a figure at these grid values."""

    figure: str
    keys: dict[str, GridValue | list[GridValue]]


class CalibratedParameter(Strict):
    """One number that was set from paper points."""

    name: str
    """Path in testbeds.toml, such as ``server.a10x1.startup.container``."""
    value: float
    unit: str
    points: list[str]
    """Names of groups in ``[points]``."""


class CalibrationFile(Strict):
    """``experiments/<paper>/calibration.toml``."""

    method: str
    residual: dict[str, float]
    """Per group in ``[points]``: mean absolute relative error left after the fit."""
    points: dict[str, CalibrationPoints]
    parameter: list[CalibratedParameter]


@dataclass(frozen=True, slots=True)
class Calibration:
    """A paper's declaration; empty when there is none."""

    path: Path
    file: CalibrationFile | None

    @classmethod
    def read(cls, path: Path) -> "Calibration":
        """The declaration in a file, which need not exist."""
        if not path.exists():
            return cls(path, None)
        file = check(CalibrationFile, read_toml(path), path)
        names = [parameter.name for parameter in file.parameter]
        for number, parameter in enumerate(file.parameter):
            if parameter.name in names[:number]:
                raise SpecError(path, f"parameter[{number}].name", f"{parameter.name} is given twice")
            for name in parameter.points:
                if name not in file.points:
                    known = ", ".join(file.points)
                    raise SpecError(path, f"parameter[{number}].points", f"no [points.{name}]. Known: {known}")
                if name not in file.residual:
                    raise SpecError(path, f"residual.{name}", "missing: say what the fit leaves of these points")
        return cls(path, file)

    def uses(self, figure_id: str, keys: Mapping[str, Any]) -> bool:
        """Whether the paper's point of this figure at these grid keys set a parameter."""
        if self.file is None:
            return False
        name = figure_id.rpartition("/")[2]
        return any(
            group.figure == name and all(_matches(keys.get(key), wanted) for key, wanted in group.keys.items())
            for group in self.file.points.values()
        )

    def check_points(self, figure_id: str, printed: Mapping[str, Sequence[Any]]) -> None:
        """Every grid value that a group names is printed in this figure; a misspelt one would pass as prediction."""
        for name, group in self.file.points.items() if self.file else ():
            for key, wanted in group.keys.items() if figure_id.endswith(f"/{group.figure}") else ():
                known = list(dict.fromkeys(map(key_text, printed.get(key, ()))))
                for value in map(key_text, wanted if isinstance(wanted, list) else [wanted]):
                    if value not in known:
                        message = f"{group.figure} prints no {key}={value}.{near_misses(value, known)}"
                        raise SpecError(self.path, f"points.{name}.keys", message)

    def apply(self, testbeds: dict[str, Any]) -> dict[str, Any]:
        """The testbeds' tables with the calibrated parameters put in; a parameter may not be given in both."""
        for number, parameter in enumerate(self.file.parameter if self.file else ()):
            *tables, key = parameter.name.split(".")
            where = f"parameter[{number}].name"
            table: Any = testbeds
            for part in tables:
                table = table.get(part)
                if not isinstance(table, dict):
                    raise SpecError(self.path, where, f"testbeds.toml has no table [{'.'.join(tables)}]")
            if key in table:
                raise SpecError(self.path, where, f"{parameter.name} has a value in testbeds.toml as well")
            table[key] = parameter.value
        return testbeds


def _matches(value: Any, wanted: Any) -> bool:
    return key_text(value) in [key_text(one) for one in (wanted if isinstance(wanted, list) else [wanted])]
