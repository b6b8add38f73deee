"""Determinism: one seed gives one result, byte for byte, whatever the number of workers and of drawings."""

from pathlib import Path

from tests.aebench.checkout import Checkout, make_checkout

SMALL = ("figure7", "--set", "grid.model=opt-2.7b", "--runs", "2")


def contents(checkout: Checkout, experiment: str, *suffixes: str) -> dict[str, bytes]:
    """The files of the newest run by name, those with one of the suffixes."""
    folder = checkout.newest(experiment)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix in suffixes}


def run(checkout: Checkout, *words: str) -> None:
    result = checkout.run(*words)
    assert result.exit_code == 0, result.output


def test_two_runs_with_the_same_seeds_are_identical_whatever_the_number_of_workers(tmp_path: Path) -> None:
    results = []
    for jobs in ("1", "2"):
        checkout = make_checkout(tmp_path / jobs)
        run(checkout, *SMALL, "--jobs", jobs)
        results.append(contents(checkout, "cold_start", ".csv", ".claim"))
    assert sorted(results[0]) == ["figure7.claim", "summary.csv"]
    assert results[0] == results[1]


def test_another_seed_gives_another_result(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path)
    run(checkout, "figure8", "--scale", "smoke", "--runs", "2")
    rows = (checkout.newest("breakdown") / "summary.csv").read_text().splitlines()
    first, second = rows[1].split(","), rows[2].split(",")
    assert (first[:2], first[2], second[2]) == (second[:2], "0", "1")
    assert first[3:] != second[3:]


def test_a_figure_drawn_twice_is_identical_beside_the_run_and_elsewhere(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path)
    run(checkout, "figure8", "--scale", "smoke")
    suffixes = (".pdf", ".png", ".svg", ".claim")
    first = contents(checkout, "breakdown", *suffixes)
    assert sorted(first) == ["figure8.claim", "figure8.pdf", "figure8.png", "figure8.svg"]
    plot = ("plot", "figure8", "--log-path", str(checkout.logs))
    assert checkout.aebench(*plot).exit_code == 0
    assert contents(checkout, "breakdown", *suffixes) == first
    assert checkout.aebench(*plot, "--out", str(tmp_path / "out")).exit_code == 0
    drawn = sorted((tmp_path / "out" / "hydraserve").iterdir())
    assert [path.name for path in drawn] == ["figure8.pdf", "figure8.png", "figure8.svg"]
    assert all(path.read_bytes() == first[path.name] for path in drawn)
