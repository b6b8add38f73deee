"""Calibration: which paper points set a parameter, and that nothing is said to be calibrated by mistake."""

from pathlib import Path

import pytest

from aebench.calibration import Calibration
from aebench.errors import SpecError
from tests.aebench.checkout import make_checkout

TEXT = """
method = "by hand"
[residual]
a10 = 0.01
both = 0.02
[points]
a10 = { figure = "figure7", keys = { gpu = "a10" } }
both = { figure = "figure8", keys = { step = ["vllm", "stream"], cv = 2 } }
[[parameter]]
name = "server.a.startup.container"
value = 1.5
unit = "s"
points = ["a10", "both"]
"""


def read(folder: Path, text: str = TEXT) -> Calibration:
    (folder / "calibration.toml").write_text(text)
    return Calibration.read(folder / "calibration.toml")


def make_testbeds() -> dict[str, object]:
    return {"server": {"a": {"startup": {"engine": 2.0}}}}


def test_only_points_that_match_every_key_of_a_group_are_calibrated(tmp_path: Path) -> None:
    calibration = read(tmp_path)
    assert calibration.uses("paper/figure7", {"gpu": "a10", "model": "opt-2.7b"})
    assert not calibration.uses("paper/figure7", {"gpu": "v100"})
    assert not calibration.uses("paper/figure70", {"gpu": "a10"})
    assert calibration.uses("paper/figure8", {"step": "stream", "cv": "2"})
    assert not calibration.uses("paper/figure8", {"step": "stream", "cv": 4})
    assert not calibration.uses("paper/figure8", {"step": "stream"})


def test_parameters_are_put_into_the_testbeds(tmp_path: Path) -> None:
    assert read(tmp_path).apply(make_testbeds()) == {"server": {"a": {"startup": {"engine": 2.0, "container": 1.5}}}}


def test_without_a_file_nothing_is_calibrated(tmp_path: Path) -> None:
    calibration = Calibration.read(tmp_path / "none.toml")
    assert calibration.apply(make_testbeds()) == make_testbeds()
    assert not calibration.uses("paper/figure7", {"gpu": "a10"})


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('["a10", "both"]', '["a11"]', ", parameter[0].points: no [points.a11]. Known: a10, both"),
        ("a10 = 0.01", "", ", residual.a10: missing: say what the fit leaves of these points"),
        (
            "[[parameter]]",
            "[[paramter]]",
            ", paramter: unknown key. Did you mean parameter? Known: method, parameter, points, residual",
        ),
        ("value = 1.5", "value = '1.5'", ", parameter.0.value: expected a number, got '1.5'"),
        ("value = 1.5", "value = nan", ", parameter.0.value: expected a finite number, got nan"),
        (
            "[points]",
            "[points",
            ": not valid TOML: Expected ']' at the end of a table declaration (at line 6, column 8)",
        ),
    ],
)
def test_a_bad_calibration_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(SpecError) as refused:
        read(tmp_path, TEXT.replace(old, new))
    assert str(refused.value) == f"{tmp_path}/calibration.toml{said}"


def test_a_parameter_given_twice_is_refused(tmp_path: Path) -> None:
    twice = TEXT + TEXT[TEXT.index("[[parameter]]") :]
    with pytest.raises(SpecError, match=r", parameter\[1\]\.name: server\.a\.startup\.container is given twice$"):
        read(tmp_path, twice)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("server.a.startup.engine", "server.a.startup.engine has a value in testbeds.toml as well"),
        ("server.b.startup.engine", "testbeds.toml has no table [server.b.startup]"),
        ("server.a.startup.engine.x", "testbeds.toml has no table [server.a.startup.engine]"),
    ],
)
def test_a_parameter_that_does_not_fit_the_testbeds_is_refused(tmp_path: Path, name: str, said: str) -> None:
    calibration = read(tmp_path, TEXT.replace("server.a.startup.container", name))
    with pytest.raises(SpecError) as refused:
        calibration.apply(make_testbeds())
    assert str(refused.value) == f"{tmp_path}/calibration.toml, parameter[0].name: {said}"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('figure = "figure8"', 'figure = "figure88"', ".figure: there is no hydraserve/figure88"),
        ('"stream"', '"straem"', ".keys: figure8 prints no step=straem. Did you mean stream?"),
        ("step = ", "stepp = ", ".keys: figure8 prints no stepp=prefetch."),
    ],
)
def test_a_group_of_points_that_the_paper_did_not_print_is_refused(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    checkout = make_checkout(tmp_path)
    path = checkout.path("calibration.toml")
    begin = path.read_text().index("v100-breakdown  = { figure")
    text = path.read_text()
    path.write_text(text[:begin] + text[begin:].replace(old, new, 1))
    expected = f"Error: ROOT/experiments/hydraserve/calibration.toml, points.v100-breakdown{said}"
    assert checkout.refusal(checkout.run("figure8")) == expected
    assert not checkout.logs.exists()
