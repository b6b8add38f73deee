"""Calibration: which paper points set which parameters, declared in ``experiments/<paper>/calibration.toml``."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aebench.claim_syntax import key_text
from aebench.errors import SpecError
from aebench.toml_files import CalibrationFile, check, read_toml


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
        for number, parameter in enumerate(file.parameter):
            for name in parameter.points:
                if name not in file.points:
                    known = ", ".join(file.points)
                    raise SpecError(path, f"parameter[{number}].points", f"no [points.{name}]. Known: {known}")
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

    def apply(self, testbeds: dict[str, Any]) -> dict[str, Any]:
        """The testbeds' tables with the calibrated parameters put in; a parameter may not be given in both."""
        for number, parameter in enumerate(self.file.parameter if self.file else ()):
            *tables, key = parameter.name.split(".")
            where = f"parameter[{number}].name"
            table: Any = testbeds
            for part in tables:
                if not isinstance(table, dict) or part not in table:
                    raise SpecError(self.path, where, f"testbeds.toml has no table [{'.'.join(tables)}]")
                table = table[part]
            if key in table:
                raise SpecError(self.path, where, f"{parameter.name} has a value in testbeds.toml as well")
            table[key] = parameter.value
        return testbeds


def _matches(value: Any, wanted: Any) -> bool:
    return key_text(value) in [key_text(one) for one in (wanted if isinstance(wanted, list) else [wanted])]
