"""Catalog: what the names mean that a user types, and which folder they are looked up in."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aebench.catalog import ROOT, ROOT_VARIABLE, Catalog, root_folder
from aebench.errors import NotFoundError, SpecError
from aebench.world import World
from tests.aebench.checkout import make_checkout

IDS = ["hydraserve/figure7", "hydraserve/figure8", "hydraserve/hello"]


def make_root(folder: Path, *twins: str) -> Path:
    """HydraServe, and copies of it under other names; none owns a bare name."""
    checkout = make_checkout(folder)
    paper = checkout.path("paper.toml")
    paper.write_text(paper.read_text().replace('aliases = ["figure7", "figure8"]', ""))
    for twin in twins:
        for name in ("experiments", "figures"):
            shutil.copytree(checkout.root / name / "hydraserve", checkout.root / name / twin)
    return checkout.root


def meant(catalog: Catalog, *names: str) -> list[str]:
    return [declared.figure_id for declared in catalog.resolve(names)]


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("hydraserve/figure7", IDS[:1]),
        ("figure8", IDS[1:2]),
        ("hydraserve", IDS),
        ("coldstart", IDS[:2]),
        ("breakdown", IDS[1:2]),
        ("hydraserve/cold_start", IDS[:1]),
        ("hello", IDS[2:]),
        ("figure13", ["hydraserve/figure13a", "hydraserve/figure13b"]),
        ("hydraserve/figure13", ["hydraserve/figure13a", "hydraserve/figure13b"]),
        ("end-to-end", [f"hydraserve/figure{name}" for name in ("9", "11", "13a", "13b")]),
        ("hydraserve/end_to_end", ["hydraserve/figure9"]),
        ("all", IDS),
    ],
)
def test_a_name_means_figures(name: str, ids: list[str]) -> None:
    assert set(ids) <= set(meant(Catalog(), name))


def test_a_figure_named_twice_is_meant_once_where_it_was_named_first(tmp_path: Path) -> None:
    catalog = Catalog(make_root(tmp_path))
    assert meant(catalog, "figure8", "coldstart", "hydraserve/figure8") == [IDS[1], IDS[0]]


@given(st.lists(st.sampled_from(["figure7", "figure8", "coldstart", "breakdown", "hydraserve/cold_start"]), min_size=1))
@settings(max_examples=50, deadline=None)
def test_names_together_mean_what_they_mean_alone_without_repetition(names: list[str]) -> None:
    catalog = Catalog()
    alone = [figure_id for name in names for figure_id in meant(catalog, name)]
    assert meant(catalog, *names) == list(dict.fromkeys(alone))


def test_a_bare_name_of_two_papers_is_ambiguous_until_one_owns_it(tmp_path: Path) -> None:
    root = make_root(tmp_path, "twin")
    with pytest.raises(NotFoundError) as refused:
        Catalog(root).resolve(["figure7"])
    assert str(refused.value) == (
        "'figure7' is in 2 papers: hydraserve/figure7, twin/figure7. "
        "Say which, for example: aebench run hydraserve/figure7"
    )
    paper = root / "experiments" / "twin" / "paper.toml"
    paper.write_text('aliases = ["figure7"]\n' + paper.read_text())
    assert meant(Catalog(root), "figure7") == ["twin/figure7"]


def test_two_owners_of_one_bare_name_are_refused(tmp_path: Path) -> None:
    root = make_root(tmp_path, "twin")
    for name in ("hydraserve", "twin"):
        paper = root / "experiments" / name / "paper.toml"
        paper.write_text('aliases = ["figure7"]\n' + paper.read_text())
    with pytest.raises(SpecError) as refused:
        Catalog(root).resolve(["figure8"])
    assert str(refused.value) == (
        f"{root}/experiments/twin/paper.toml, aliases: 'figure7' is owned by hydraserve already"
    )


def test_figures_come_in_printed_order(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    figures = root / "figures" / "hydraserve"
    for name in ("figure10", "figure9"):
        shutil.copy(figures / "figure8.toml", figures / f"{name}.toml")
    ids = [figure_id for figure_id in Catalog(root).figures if "/figure" in figure_id]
    assert ids[:4] == [f"hydraserve/figure{number}" for number in (7, 8, 9, 10)]


def test_every_known_name_means_something() -> None:
    catalog = Catalog()
    for name in catalog.known_names():
        assert meant(catalog, name)


def test_a_variable_names_another_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ROOT_VARIABLE, raising=False)
    assert (root_folder(), Catalog().root) == (ROOT, ROOT)
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    assert Catalog().root == tmp_path
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(NotFoundError, match=r"AEBENCH_ROOT=.*/none: expected a folder that holds experiments/"):
        Catalog()


def test_a_topic_of_one_paper_is_named_with_it_where_two_have_it(tmp_path: Path) -> None:
    catalog = Catalog(make_root(tmp_path, "twin"))
    assert meant(catalog, "twin/figure13") == ["twin/figure13a", "twin/figure13b"]
    assert len(meant(catalog, "figure13")) == 4
    assert catalog.is_group("twin/figure13")


BREAKS = [
    ("experiments/twin/paper.toml", b"title = [", "paper.toml: not valid TOML"),
    ("figures/twin/figure8.toml", b"shows = 3", "figure8.toml"),
    ("figures/twin/figure8.toml", b"\xff", "figure8.toml: not UTF-8 text"),
]


@pytest.mark.parametrize(("name", "content", "said"), BREAKS, ids=[name for name, _, _ in BREAKS])
def test_a_broken_file_of_one_paper_stops_what_may_be_of_that_paper_only(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    root = make_root(tmp_path, "twin")
    (root / name).write_bytes(content)
    (root / "figures" / "hydraserve" / "mine.toml").write_bytes(
        (root / "figures" / "hydraserve" / "figure8.toml").read_bytes()
    )
    catalog = Catalog(root)
    for fine in ("hydraserve/figure7", "hydraserve/figure13", "hydraserve", "mine", "live/ttft"):
        assert meant(catalog, fine)
    for may_be_its in ("twin", "twin/figure7", "figure7", "figure8", "all", "no-such-name"):
        with pytest.raises(SpecError, match=said):
            catalog.resolve([may_be_its])


@pytest.mark.parametrize("name", ["experiments/live/paper.toml", "experiments/live/two_instances.toml"])
def test_a_broken_file_of_one_paper_is_named_in_the_list_of_all(tmp_path: Path, name: str) -> None:
    checkout = make_checkout(tmp_path)
    (checkout.root / name).write_text("title = [")
    listed = checkout.aebench("list")
    assert listed.exit_code == 0
    assert "hydraserve/figure7" in listed.output
    assert f"cannot be read: ROOT/{name}: not valid TOML" in checkout.short(listed.output)
    assert f"ROOT/{name}: not valid TOML" in checkout.refusal(checkout.aebench("list", "live"))
    assert checkout.run("hydraserve/hello", "--dry-run").exit_code == 0


def test_on_this_machine_a_figure_shows_nothing_that_the_paper_measured() -> None:
    catalog = Catalog(ROOT)
    (declared,) = catalog.resolve(["hydraserve/figure13a"])
    here = catalog.figure_in(declared, World(backend="live", device="cpu"))
    assert (declared.file.paper_bars, here.file.paper_bars) == ("figure13a.csv", None)
