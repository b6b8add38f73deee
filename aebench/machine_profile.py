"""A profile file: what ``aebench calibrate`` measured of a machine, for ``aebench run --profile``."""

import json
from pathlib import Path

from aebench.errors import SpecError
from serving.cost.profile import Profile


def read_profile(path: Path) -> Profile:
    """The profile in a file; SpecError says what is wrong with it."""
    try:
        return Profile.from_json(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise SpecError(
            path, "", f"there is no such file. Run: aebench calibrate --model smollm2-135m --out {path}"
        ) from error
    except OSError as error:
        raise SpecError(path, "", f"cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SpecError(path, "", f"not a profile of aebench calibrate: {error}") from error
