"""The ablation of Llumnix changes one thing at a time, from a point of Figure 11."""

from typing import Any

from aebench.catalog import Catalog
from aebench.experiment import Experiment

LOADED = {"m-m": 7.8, "s-l": 4.2}


def experiment(name: str) -> Experiment:
    return Catalog().experiment(f"llumnix/{name}")


def specs(name: str) -> list[tuple[dict[str, Any], Any]]:
    found = experiment(name)
    return [(dict(cell), found.resolve(cell)) for cell in found.cells()]


def served(spec: Any) -> dict[str, Any]:
    """What decides about a point's records."""
    return {key: spec[key] for key in ("workload", "servers", "deployments", "measure")}


def test_unchanged_is_figure_11() -> None:
    rows = {(cell["trace"], cell["rate"]): spec for cell, spec in specs("serving") if cell["system"] == "llumnix"}
    unchanged = [(cell["trace"], spec) for cell, spec in specs("ablation") if cell["change"] == "none"]
    assert [trace for trace, _ in unchanged] == list(LOADED)
    for trace, spec in unchanged:
        original = rows[trace, LOADED[trace]]
        assert served(spec) == served(original)
        assert (spec["system"], spec["policy"]) == ("llumnix", original["policy"])


def test_every_change_is_of_one_thing() -> None:
    of = {(cell["trace"], cell["change"]): spec for cell, spec in specs("ablation")}
    for (trace, change), spec in of.items():
        base = of[trace, "none"]
        assert served(spec) == served(base)
        keys = {key for key in {*spec["policy"], *base["policy"]} if spec["policy"].get(key) != base["policy"].get(key)}
        expected = {"none": 0, "round_robin_alone": 2}.get(change, 1)
        assert len(keys) == expected, (trace, change, keys)


def test_every_change_has_a_name_in_print() -> None:
    (declared,) = Catalog().resolve(["llumnix/ablation"])
    found = experiment("ablation")
    labels = Catalog().figure(declared, found).plot.labels
    assert {str(cell["change"]) for cell in found.cells()} <= set(labels)
