"""Bad input: every way to spoil a file gets one message with file, key and expectation, and nothing is written."""

from pathlib import Path

import pytest

from tests.aebench.checkout import Cases, Checkout, make_checkout

PAPER_TOML: Cases = [
    ("venue", "venu", ", venu: unknown key. Did you mean venue? Known: about, aliases, own, title, topics, venue"),
    ('aliases = ["figure7"', 'aliases = ["figure77"', ", aliases: there is no figures/hydraserve/figure77.toml"),
    ('own     = ["ablation"', 'own     = ["oblation"', ", own: there is no figures/hydraserve/oblation.toml"),
    (
        'coldstart = ["figure7"',
        'coldstart = ["figure99"',
        ", topics.coldstart: there is no figures/hydraserve/figure99.toml",
    ),
]
FIGURE8_TOML: Cases = [
    (
        'kind = "bars"',
        'kind = "bras"',
        (
            ", plot.kind: unknown kind 'bras'. Did you mean bars? "
            "Known: bars, change_bars, line_grid, lines, log_lines, over_time, ratio_bars, trade_off"
        ),
    ),
    ('x = "step"', 'x = "stepp"', ", plot: the experiment has no grid key 'stepp'. Known: pair, step"),
    (
        'y = "ttft_mean"',
        'y = "ttft_men"',
        (
            ", plot.y: unknown metric 'ttft_men'. Did you mean ttft_mean or tpot_mean or ttft_p99? Known:"
            " num_requests, num_finished, ttft_mean, ttft_p50, ttft_p99, tpot_mean, tpot_p50, tpot_p99, "
            "itl_p99, e2e_mean, e2e_p50, e2e_p99, slo_attainment, goodput, token_throughput"
        ),
    ),
    (
        "caption ",
        "captoin ",
        (
            ", captoin: unknown key. Did you mean caption? Known: caption, experiment, labels, orientation, paper, "
            "paper_bars, paper_label, plot, ratio, shows, table, where"
        ),
    ),
    (
        'paper      = "figure8.csv"',
        'paper = "figure80.csv"',
        "Error: ROOT/figures/hydraserve/figure80.csv: there is no such file",
    ),
    ('paper      = "figure8.csv"', "paper = 8", ", paper: expected a string, got 8"),
    (
        'experiment = "breakdown"',
        'experiment = "breakdwn"',
        ", experiment: there is no experiments/hydraserve/breakdwn.toml. Did you mean breakdown?",
    ),
    ("plot       = {", "plot = 3 # {", ", plot: expected a table, got 3"),
]
FIGURE8_CLAIM: Cases = [
    (
        "c13a   ttft_mean",
        "c13a   ttft_men",
        (
            ", line 6: unknown metric 'ttft_men' in c13a. Did you mean ttft_mean or tpot_mean or "
            "ttft_p99? Known: num_requests, num_finished, ttft_mean, ttft_p50, ttft_p99, tpot_mean, "
            "tpot_p50, tpot_p99, itl_p99, e2e_mean, e2e_p50, e2e_p99, slo_attainment, goodput, "
            "token_throughput"
        ),
    ),
    (
        "c13a   ttft_mean [pair",
        "c13a   ttft_mean [pear",
        ", line 6: unknown grid key 'pear' in c13a. Did you mean pair? Known: pair, step",
    ),
    ("step=vllm] =", "step=vllm =", ", line 6: found '[', expected a closing ']' before the end or the next '['"),
    ("step=vllm] = 38.6 s", "step=vllm] = 38.6 h", ", line 6: found 'h', expected a unit (s, ms, x, %, pp) or none"),
    ("c13b", "c13a", ", line 7: found a second claim 'c13a', expected another id than on line 6"),
    (
        "  # claim c13: each technique lowers TTFT",
        "",
        (", line 5: found the end of the claim, expected '#' and the source of the claim, such as # Fig. 7a"),
    ),
    (
        "decreasing over step",
        "decreasing over stp",
        ", line 5: unknown grid key 'stp' in c13. Did you mean step? Known: pair, step",
    ),
]
FIGURE8_CSV: Cases = [
    ("ttft_mean", "ttft_men", ", line 1: unknown column 'ttft_men'. Known: pair, step, ttft_mean, source"),
    ("pair,step,ttft_mean,source", "pair,step,ttft_mean", ", line 1: column 'source' is missing"),
    (",38.6,", ",38.6 s,", ", line 2, ttft_mean: expected a number, got '38.6 s'"),
    (",38.6,", ",nan,", ", line 2, ttft_mean: expected a finite number, got nan"),
    (",38.6,", ",38.6,,", ", line 2: expected 4 cells, got 5"),
    ("vllm,38.6,", "prefetch,38.6,", ", line 3: the same point as on line 2: llama2-13b-v100, prefetch"),
    (
        "vllm,38.6,paper Fig. 8 as redrawn by a third party",
        "vllm,38.6,",
        ", line 2, source: expected where the number comes from, got nothing",
    ),
    ("vllm,38.6,paper", 'vllm,38.6,"paper', ": not a CSV file: unexpected end of data"),
]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """One copy for all cases; each puts back what it spoilt."""
    return make_checkout(tmp_path_factory.mktemp("bad_input"))


@pytest.mark.parametrize("case", PAPER_TOML, ids=lambda case: case[1][:40])
def test_a_bad_paper_is_refused(original: Checkout, case: tuple[str, str, str]) -> None:
    original.check_case("paper.toml", case)


@pytest.mark.parametrize("case", FIGURE8_TOML, ids=lambda case: case[1][:40])
def test_a_bad_figure_is_refused(original: Checkout, case: tuple[str, str, str]) -> None:
    original.check_case("figure8.toml", case)


@pytest.mark.parametrize("case", FIGURE8_CLAIM, ids=lambda case: case[1][:40])
def test_bad_claims_are_refused(original: Checkout, case: tuple[str, str, str]) -> None:
    original.check_case("figure8.claim", case)


@pytest.mark.parametrize("case", FIGURE8_CSV, ids=lambda case: case[1][:40])
def test_bad_paper_points_are_refused(original: Checkout, case: tuple[str, str, str]) -> None:
    original.check_case("figure8.csv", case)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("breakdown.toml", ": not UTF-8 text (byte 1)"),
        ("testbeds.toml", ": not UTF-8 text (byte 1)"),
        ("calibration.toml", ": not UTF-8 text (byte 1)"),
        ("paper.toml", ": not UTF-8 text (byte 1)"),
        ("figure8.toml", ": not UTF-8 text (byte 1)"),
        ("figure8.claim", ": not UTF-8 text (byte 1)"),
        ("figure8.csv", ": not UTF-8 text (byte 1)"),
    ],
)
def test_a_file_that_is_not_text_is_refused(original: Checkout, name: str, said: str) -> None:
    assert original.spoilt(name, b"a\xff\xfe\n") == said


def test_an_empty_file_of_paper_points_is_refused(original: Checkout) -> None:
    said = ", line 1: expected a header with pair, step, ttft_mean, source, got an empty file"
    assert original.spoilt("figure8.csv", b"") == said


def test_an_unspoilt_copy_is_not_refused(tmp_path: Path) -> None:
    assert make_checkout(tmp_path).run("figure8", "--dry-run").exit_code == 0
