"""Open loops with a trace of lengths: who is sent when, with which priority; made and imported traces; refusals."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, get_args

import pytest

from aebench.catalog import Catalog
from aebench.execute import deployments
from aebench.workload_tables import Workload
from aebench.workloads import timed_requests
from serving.core.request import Request
from serving.units import Seconds
from serving.workload.length_traces import LENGTH_TRACES
from serving.workload.traces import read_trace
from tests.aebench.checkout import Checkout, make_checkout

EXPERIMENT = """
title   = "An open loop with a trace of lengths"
testbed = "testbed_i"

[workload]
kind                = "open_loop"
num_requests        = 400
first_after         = 30.0
lengths             = "s-s"
high_priority_share = 0.1
arrivals            = { kind = "poisson", rate = 2.0 }

[grid]
system = ["serverless_vllm", "hydraserve"]

[deployments]
"llama2-7b" = { size_gb = 13, ttft_slo = 9.0, tpot_slo = 0.2 }
"""
FIGURE = """
shows      = "TTFT of an open loop"
experiment = "traced"
plot       = { kind = "bars", x = "system", y = "ttft_mean", series = "system" }
"""
DRAWN = """lengths             = "s-s"
high_priority_share = 0.1
"""
Timed = list[tuple[Seconds, Request]]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """A checkout with the experiment ``traced`` and a figure of it."""
    made = make_checkout(tmp_path_factory.mktemp("checkout"))
    (made.root / "experiments" / "hydraserve" / "traced.toml").write_text(EXPERIMENT)
    (made.root / "figures" / "hydraserve" / "figure99.toml").write_text(FIGURE)
    yield made


def specs(checkout: Checkout, *settings: str, text: str = EXPERIMENT) -> list[Any]:
    """The specs of the experiment's points, one a system; of a text in its place."""
    path = checkout.path("traced.toml")
    path.write_text(text)
    try:
        points = Catalog(checkout.root).experiment("hydraserve/traced", settings=settings).points([0])
    finally:
        path.write_text(EXPERIMENT)
    return [point.spec for point in points]


def requests(spec: dict[str, Any], seed: int = 0) -> Timed:
    """What is sent."""
    return list(timed_requests(spec, seed, deployments(spec)))


def lengths(timed: Timed) -> list[tuple[int, int]]:
    return [(request.num_prompt_tokens, request.num_output_tokens) for _, request in timed]


def test_the_table_knows_every_trace() -> None:
    literal, _ = get_args(Workload.model_fields["lengths"].annotation)
    assert get_args(literal) == tuple(LENGTH_TRACES)


def test_every_system_gets_the_same_requests(checkout: Checkout) -> None:
    one, other = specs(checkout)
    assert requests(one) == requests(other)
    assert requests(one) == requests(one)


def test_the_first_request_comes_first_and_each_other_a_gap_later(checkout: Checkout) -> None:
    (spec, _) = specs(checkout, "workload.arrivals.kind=fixed", "workload.arrivals.gap=0.5", "workload.num_requests=3")
    assert [at for at, _ in requests(spec)] == [30.0, 30.5, 31.0]


def test_paper_scale_sends_what_the_original_sends(checkout: Checkout) -> None:
    """At 2 requests a second the original's unit gaps 3.206315 and 0.598182 are halved."""
    (spec, _) = specs(checkout, "workload.num_requests=10000", text=EXPERIMENT.replace("30.0", "0.0"))
    timed = requests(spec)
    assert [at for at, _ in timed[:3]] == pytest.approx([0.0, 1.6031575, 1.9022485], abs=1e-6)
    assert lengths(timed[:3]) == [(76, 35), (113, 172), (38, 240)]
    assert [request.request_id for _, request in timed] == list(range(10_000))
    assert all(earlier <= later for (earlier, _), (later, _) in pairwise(timed))


def test_a_tenth_of_the_requests_are_of_high_priority(checkout: Checkout) -> None:
    (spec, _) = specs(checkout, "workload.num_requests=10000")
    high = [request.priority for _, request in requests(spec)]
    assert sorted(dict.fromkeys(high)) == [0, 1]
    assert sum(high) == pytest.approx(1000, abs=4 * 30)  # binomial: a standard deviation of 30
    rng = Random("0/priorities")
    assert high == [int(rng.random() < 0.1) for _ in range(10_000)]
    assert high != [request.priority for _, request in requests(spec, 1)]


def test_priorities_move_neither_lengths_nor_arrivals(checkout: Checkout) -> None:
    (some, _), (none, _), (all_high, _) = (
        specs(checkout, text=EXPERIMENT.replace("= 0.1", f"= {share}")) for share in (0.1, 0.0, 1.0)
    )
    assert [at for at, _ in requests(some)] == [at for at, _ in requests(none)]
    assert lengths(requests(some)) == lengths(requests(none))
    assert {request.priority for _, request in requests(none)} == {0}
    assert {request.priority for _, request in requests(all_high)} == {1}


def test_priorities_come_with_drawn_lengths_too(checkout: Checkout) -> None:
    drawn = 'prompt = { kind = "fixed", tokens = 5 }\noutput = { kind = "fixed", tokens = 6 }\n'
    text = EXPERIMENT.replace('lengths             = "s-s"\n', drawn)
    timed = requests(specs(checkout, text=text)[0])
    assert lengths(timed) == [(5, 6)] * 400
    assert 10 < sum(request.priority for _, request in timed) < 90


def test_what_is_not_said_is_not_in_the_spec(checkout: Checkout) -> None:
    """Points of experiments from before keep their digests."""
    spec = Catalog(checkout.root).experiment("hydraserve/hello").points([0])[0].spec
    assert "lengths" not in spec["workload"] and "high_priority_share" not in spec["workload"]
    without = specs(checkout, text=EXPERIMENT.replace("= 0.1", "= 0.0"))[0]
    assert without["workload"]["lengths"] == "s-s" and "high_priority_share" not in without["workload"]


def test_a_made_trace_sends_the_same_requests(checkout: Checkout, tmp_path: Path) -> None:
    path = tmp_path / "made.csv"
    made = checkout.aebench("trace", "make", "traced", "--seed", "1", "--out", str(path))
    assert made.output.startswith(f"{path}\nrequests     400 in ")
    read = ("workload.arrivals.kind=trace", f"workload.arrivals.file={path}")
    assert requests(specs(checkout, *read)[0]) == requests(specs(checkout)[0], 1)
    assert {row.priority for row in read_trace(path)} == {0, 1}


def burst(tmp_path: Path, num: int) -> Path:
    """A recording of as many conversations, all different."""
    path = tmp_path / "burst.csv"
    rows = [f"{index},GPT-4,{index + 1},{index + 2},9,Conversation log\n" for index in range(num)]
    path.write_text("Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n" + "".join(rows))
    return path


def test_burstgpt_gives_conversations_of_it_none_twice(checkout: Checkout, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    words = ("trace", "import", "burstgpt", str(burst(tmp_path, 500)), "--experiment", "traced", "--out", str(out))
    found = []
    for seed in ("0", "0", "1"):
        assert checkout.aebench(*words, "--seed", seed).output.startswith(f"{out}\nrequests     400 in ")
        found.append(out.read_text())
    rows = read_trace(out)
    assert found[0] == found[1] != found[2]
    assert len({row.num_prompt_tokens for row in rows}) == 400
    assert all(row.num_output_tokens == row.num_prompt_tokens + 1 for row in rows)
    assert rows[0].arrived_at == 30.0
    assert {row.priority for row in rows} == {0, 1}


def tokenizer(folder: Path) -> Path:
    """A tokenizer of words."""
    tokenizers = pytest.importorskip("tokenizers", reason="needs the live extra: make test-live")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    return folder


def test_sharegpt_gives_first_exchanges_in_file_order(checkout: Checkout, tmp_path: Path) -> None:
    """The third conversation has 12,800 tokens, one too many; the fifth is not wanted any more."""
    file, out = tmp_path / "talks.jsonl", tmp_path / "out.csv"
    sizes = [(3, 2), (1, 1), (12_000, 800), (12_000, 799), (5, 5)]
    talks = [[{"from": "human", "value": "a " * asked}, {"from": "gpt", "value": "a " * said}] for asked, said in sizes]
    file.write_text("".join(json.dumps({"conversations": talk}) + "\n" for talk in talks))
    words = ("trace", "import", "sharegpt", str(file), "--tokenizer", str(tokenizer(tmp_path / "words")))
    settings = ("--set", "workload.num_requests=3", "--experiment", "traced", "--out", str(out))
    said = checkout.aebench(*words, *settings)
    assert said.exit_code == 0, said.output
    rows = read_trace(out)
    assert [(row.num_prompt_tokens, row.num_output_tokens) for row in rows] == [(3, 2), (1, 1), (12_000, 799)]


REFUSED = [
    (
        ("burstgpt", "FILE", "--experiment", "traced"),
        "FILE: held 5 usable conversations, workload.num_requests is 400. Run with --set workload.num_requests=5",
    ),
    (
        ("burstgpt", "FILE", "--experiment", "end_to_end", "--set", "grid.cv=8", "--set", "grid.rate=0.6"),
        "hydraserve/end_to_end: expected an experiment with an open loop whose arrivals are drawn",
    ),
    (
        ("burstgpt", "NONE", "--experiment", "traced"),
        "NONE: cannot be read (No such file or directory)",
    ),
    (
        ("sharegpt", "FILE", "--tokenizer", "WORDS", "--experiment", "traced"),
        "FILE, line 1: held broken JSON (Expecting value: line 1 column 1 (char 0)), "
        "expected a conversation a line, or an array of them",
    ),
    (
        ("sharegpt", "EMPTY", "--tokenizer", "WORDS", "--experiment", "traced"),
        "EMPTY: held 0 usable conversations, workload.num_requests is 400.",
    ),
    (
        ("sharegpt", "FILE", "--tokenizer", "NONE", "--experiment", "traced"),
        "NONE: no tokenizer.json; requests for this model must give token ids, not text",
    ),
]


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_what_cannot_be_imported_gets_one_message(
    checkout: Checkout, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    out = tmp_path / "out.csv"
    places = {"FILE": str(burst(tmp_path, 5)), "NONE": str(tmp_path / "none"), "EMPTY": str(tmp_path / "empty")}
    (tmp_path / "empty").write_text("")
    if "WORDS" in words:
        places["WORDS"] = str(tokenizer(tmp_path / "words"))
    given = ("trace", "import", *(places.get(word, word) for word in words), "--out", str(out))
    said = checkout.refusal(checkout.aebench(*given))
    for name in ("FILE", "NONE", "EMPTY"):
        said = said.replace(places[name], name)
    assert said == f"Error: {message}"
    assert not out.exists()


CASES = [
    (
        '"s-s"',
        '"s-x"',
        ", workload.lengths: expected 's-s', 'm-m', 'l-l', 's-l', 'l-s', 'sharegpt' or 'burstgpt', got 's-x'",
    ),
    ("= 0.1", "= 1.5", ", workload.high_priority_share: expected a number less than or equal to 1, got 1.5"),
    (DRAWN, "", ", workload.prompt: missing: an open loop needs it, or workload.lengths"),
    (
        DRAWN,
        f'{DRAWN}output = {{ kind = "fixed", tokens = 6 }}\n',
        ", workload.output: expected none where workload.lengths is 's-s'",
    ),
    (
        f'"open_loop"\nnum_requests        = 400\nfirst_after         = 30.0\n{DRAWN}',
        '"serverless"\nhigh_priority_share = 0.1\n',
        ", workload.high_priority_share: expected with an open loop only, not serverless",
    ),
]


@pytest.mark.parametrize(("old", "new", "said"), CASES)
def test_a_workload_that_makes_no_sense_is_refused(checkout: Checkout, old: str, new: str, said: str) -> None:
    path = checkout.path("traced.toml")
    assert old in EXPERIMENT
    path.write_text(EXPERIMENT.replace(old, new, 1))
    try:
        refusal = checkout.refusal(checkout.run("figure99"))
    finally:
        path.write_text(EXPERIMENT)
    assert refusal == f"Error: {checkout.short(str(path))}{said}"
