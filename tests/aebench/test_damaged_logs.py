"""Damaged logs: every command that reads one says which file, why, and what to do; no traceback, no guess."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.aebench.checkout import Checkout, make_checkout

Damage = Callable[[Path], None]
POINT = "points/pair=llama2-13b-v100,step=vllm.parquet"


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout with one complete run."""
    checkout = make_checkout(tmp_path_factory.mktemp("complete"))
    assert checkout.run("figure8", "--scale", "smoke").exit_code == 0
    return checkout


@pytest.fixture
def log(complete: Checkout, tmp_path: Path) -> tuple[Checkout, Path]:
    """A copy of the run to damage, and its folder."""
    checkout = Checkout(root=complete.root, logs=tmp_path / "logs")
    shutil.copytree(complete.logs, checkout.logs)
    return checkout, checkout.newest("breakdown")


def replace(name: str, old: str, new: str) -> Damage:
    def damage(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return damage


def hold(name: str, content: bytes) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return damage


def cut(name: str, num_bytes: int) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:num_bytes])

    return damage


def drop_last_line(folder: Path) -> None:
    lines = (folder / "summary.csv").read_text().splitlines(keepends=True)
    (folder / "summary.csv").write_text("".join(lines[:-1]))


MANIFEST = [
    (
        hold("run.json", b"{"),
        ": not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))",
    ),
    (hold("run.json", b"[]"), ": expected a JSON object, got list"),
    (
        replace("run.json", '"schema": 1', '"schema": 99'),
        ": written by a newer aebench (schema 99, this one reads up to 1). Update aebench to read it",
    ),
    (replace("run.json", '"schema": 1', '"schema": "1"'), ": schema is '1', expected a number from 1 to 1"),
    (
        replace("run.json", '"status": "success"', '"status": "great"'),
        ", status: expected 'started', 'success', 'partial', 'error' or 'stopped', got 'great'",
    ),
]
SUMMARY = [
    (lambda folder: (folder / "summary.csv").unlink(), ": No such file or directory. Run again with --resume"),
    (hold("summary.csv", b""), ": No columns to parse from file. Run again with --resume"),
    (hold("summary.csv", b"a\xff\n"), ": not UTF-8 text (byte 1). Run again with --resume"),
    (cut("summary.csv", -7), ": cut off, it has 5 rows of 5. Run again with --resume"),
    (drop_last_line, ": cut off, it has 4 rows of 5. Run again with --resume"),
    (
        replace("summary.csv", "ttft_mean", "ttft_men"),
        ", ttft_mean: this column is missing. Run again with --resume",
    ),
    (
        replace("summary.csv", ",vllm,0,2,2,", ",vllm,0,2,2,x"),
        ", ttft_mean: expected numbers only. Run again with --resume",
    ),
]


@pytest.mark.parametrize(("damage", "said"), MANIFEST, ids=[said for _, said in MANIFEST])
@pytest.mark.parametrize("command", ["diff", "plot", "report", "run"])
def test_a_damaged_manifest_is_named(log: tuple[Checkout, Path], command: str, damage: Damage, said: str) -> None:
    checkout, folder = log
    damage(folder)
    before = checkout.written()
    words = ["figure8", "--log-path", str(checkout.logs)]
    words += {"report": ["--out", str(checkout.logs / "page.html")], "run": ["--scale", "smoke", "--resume"]}.get(
        command, []
    )
    refused = checkout.refusal(checkout.aebench(command, *words))
    assert refused.removesuffix(". Is the log complete?") == f"Error: {checkout.short(str(folder))}/run.json{said}"
    assert checkout.written() == before


@pytest.mark.parametrize(("damage", "said"), SUMMARY, ids=[said for _, said in SUMMARY])
@pytest.mark.parametrize("command", ["diff", "plot"])
def test_a_damaged_summary_is_named(log: tuple[Checkout, Path], command: str, damage: Damage, said: str) -> None:
    checkout, folder = log
    damage(folder)
    before = checkout.written()
    refused = checkout.refusal(checkout.aebench(command, "figure8", "--log-path", str(checkout.logs)))
    assert refused == f"Error: {checkout.short(str(folder))}/summary.csv{said}"
    assert checkout.written() == before


def test_a_damaged_summary_is_made_anew_from_the_points(log: tuple[Checkout, Path]) -> None:
    checkout, folder = log
    whole = (folder / "summary.csv").read_bytes()
    drop_last_line(folder)
    result = checkout.run("figure8", "--scale", "smoke", "--resume")
    assert (result.exit_code, "5 of 5 points were there already" in result.stdout) == (0, True)
    assert (folder / "summary.csv").read_bytes() == whole


def test_a_damaged_point_is_named_and_run_again_once_it_is_deleted(log: tuple[Checkout, Path]) -> None:
    checkout, folder = log
    whole = (folder / "summary.csv").read_bytes()
    cut(POINT, 500)(folder)
    resume = ("figure8", "--scale", "smoke", "--resume")
    refused = checkout.refusal(checkout.run(*resume))
    assert refused.startswith(f"Error: {checkout.short(str(folder))}/{POINT}: damaged (")
    assert refused.endswith("). Delete it and run again with --resume")
    (folder / POINT).unlink()
    result = checkout.run(*resume)
    assert (result.exit_code, "4 of 5 points were there already" in result.stdout) == (0, True)
    assert (folder / "summary.csv").read_bytes() == whole


def test_lines_that_a_crash_cut_short_are_run_again(log: tuple[Checkout, Path]) -> None:
    checkout, folder = log
    whole = (folder / "summary.csv").read_bytes()
    (folder / POINT).unlink()
    (folder / POINT).with_suffix(".jsonl").write_bytes(b'{"kind":"point","sche')
    result = checkout.run("figure8", "--scale", "smoke", "--resume")
    assert (result.exit_code, "4 of 5 points were there already" in result.stdout) == (0, True)
    assert (folder / "summary.csv").read_bytes() == whole
    assert sorted(path.suffix for path in (folder / "points").iterdir()) == [".parquet"] * 5
