"""--fill history: shipped points in the holes of a run, marked, and only where nothing else differs."""

from pathlib import Path

import pytest

from tests.aebench.checkout import Checkout, make_checkout


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout with a whole shipped run of Figure 8."""
    checkout = make_checkout(tmp_path_factory.mktemp("fill"))
    run = checkout.aebench("run", "figure8", "--log-path", str(checkout.root / "history_logs"))
    assert run.exit_code == 0
    return checkout


def test_holes_are_filled_and_what_rests_on_them_says_history(shipped: Checkout) -> None:
    assert shipped.run("figure8", "--set", "grid.pair=llama2-13b-v100").exit_code == 0
    alone = shipped.aebench("diff", "figure8", "--log-path", str(shipped.logs))
    assert "\nabsent      c13    " in alone.stdout
    filled = shipped.aebench("diff", "figure8", "--log-path", str(shipped.logs), "--fill", "history")
    verdicts = [line.split()[:2] for line in filled.stdout.splitlines() if " c13" in line]
    assert verdicts == [
        ["history", "c13"],
        *(["calibrated", f"c13{letter}"] for letter in "abcde"),
        *(["history", f"c13{letter}"] for letter in "fg"),
    ]
    assert filled.exit_code == 0


def test_a_claim_that_would_fail_with_shipped_points_ends_with_1(shipped: Checkout) -> None:
    claims = shipped.path("figure8.claim")
    before = claims.read_text()
    claims.write_text("c1  ttft_mean increasing over step  # a false one\n")
    try:
        filled = shipped.aebench("diff", "figure8", "--log-path", str(shipped.logs), "--fill", "history")
    finally:
        claims.write_text(before)
    assert "would be fail" in filled.stdout
    assert filled.exit_code == 1


def test_a_run_with_other_settings_is_not_filled(shipped: Checkout, tmp_path: Path) -> None:
    words = ("--set", "grid.pair=llama2-13b-v100", "--set", "workload.gap=40", "--log-path", str(tmp_path))
    assert shipped.aebench("run", "figure8", *words).exit_code == 0
    refused = shipped.aebench("diff", "figure8", "--log-path", str(tmp_path), "--fill", "history")
    assert refused.exit_code == 2
    assert " in workload, so its holes cannot be filled from there. Leave out --fill\n" in refused.stderr
