"""``aebench trace``: what it writes, what it says, whole."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.workload.functions import SyntheticFunctions
from serving.workload.traces import read_trace
from tests.aebench.checkout import Checkout, make_checkout
from tests.aebench.test_serverless_workload import EXPERIMENT, FIGURE

ONE_CV = ("--set", "grid.cv=8")
BY_HAND = """arrived_at,model,num_prompt_tokens,num_output_tokens,label
1.0,a,10,1,chatbot
3.0,b,100,2,code
4.0,a,20,3,chatbot
35.0,a,60,8,chatbot
"""

SHOWN = """\
requests     4 in 35.0 s, 0.114 a second
models       2 asked; busiest 75.0% of the requests, busiest 10 100.0%
warm         25.0% of the requests come within 30 s of the one before to their model
CV of gaps   1.23 overall; of the 0 models with 20 requests or more: none

label    requests   share  models  prompt tokens (mean, p50, p99)  output tokens (mean, p50, p99)
chatbot         3   75.0%       1                    30.0, 20, 60                       4.0, 3, 8
code            1   25.0%       1                 100.0, 100, 100                       2.0, 2, 2
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """A checkout with the experiment ``two_apps`` and a figure of it."""
    made = make_checkout(tmp_path_factory.mktemp("checkout"))
    (made.root / "experiments" / "hydraserve" / "two_apps.toml").write_text(EXPERIMENT)
    (made.root / "figures" / "hydraserve" / "figure99.toml").write_text(FIGURE)
    yield made


def test_show_says_what_a_trace_is_like(checkout: Checkout, tmp_path: Path) -> None:
    """Gaps 2, 1, 31: mean 11.33, deviation 13.91. One of four comes within 30 s: a's second; its third is 31 s late."""
    path = tmp_path / "trace.csv"
    path.write_text(BY_HAND)
    said = checkout.aebench("trace", "show", str(path)).output
    assert said == f"{path}\n{SHOWN}"
    assert "warm         50.0% of" in checkout.aebench("trace", "show", str(path), "--keep-alive", "31").output


def test_show_draws_a_picture(checkout: Checkout, tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text(BY_HAND)
    result = checkout.aebench("trace", "show", str(tmp_path / "trace.csv"), "--out", str(tmp_path / "picture.png"))
    assert result.output.endswith(
        "\n\n" + "".join(f"picture {tmp_path}/picture.{suffix}\n" for suffix in ("pdf", "png", "svg"))
    )
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_a_trace_of_one_request_can_be_shown_and_drawn(checkout: Checkout, tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("arrived_at,model,num_prompt_tokens,num_output_tokens\n0,a,1,1\n")
    result = checkout.aebench("trace", "show", str(path), "--out", str(tmp_path / "one"))
    assert "requests     1 in 0.0 s\n" in result.output
    assert "CV of gaps   - overall" in result.output


def test_what_is_made_runs_as_the_experiment_does(checkout: Checkout, tmp_path: Path) -> None:
    path = tmp_path / "made.csv"
    made = checkout.aebench("trace", "make", "two_apps", *ONE_CV, "--seed", "1", "--out", str(path))
    assert made.exit_code == 0, made.output
    assert made.output.startswith(f"{path}\nrequests     250 in ")
    rows = read_trace(path)
    assert {(row.label, row.ttft_slo, row.tpot_slo) for row in rows} == {("chatbot", 9.0, 0.2), ("code", 8.0, 0.1)}
    read = ("--set", "workload.trace.kind=file", "--set", f"workload.trace.file={path}", "--runs", "1")
    one = (*ONE_CV, "--set", "grid.system=serverless_vllm")
    summaries = []
    for words in (one, (*one, *read)):
        checkout.run("figure99", *words, "--runs", "2")
        summaries.append(max(checkout.logs.rglob("summary.csv"), key=lambda file: file.stat().st_mtime_ns))
    drawn, replayed = (file.read_text().splitlines() for file in summaries)
    by_seed = drawn[0].split(",").index("seed")
    of_seed_1 = next(line for line in drawn[1:] if line.split(",")[by_seed] == "1")
    assert of_seed_1 in replayed


def test_a_recorded_trace_makes_what_the_same_functions_make(checkout: Checkout, tmp_path: Path) -> None:
    functions = SyntheticFunctions(num_functions=14, num_invocations=20_000, days=2, rate_sigma=2.65).invocations(0)
    recorded = tmp_path / "recorded.txt"
    rows = [f"app,f{index},{time!r},0\n" for index, times in enumerate(functions.arrived_at) for time in times.tolist()]
    recorded.write_text("app,func,end_timestamp,duration\n" + "".join(rows))
    made, imported = tmp_path / "made.csv", tmp_path / "imported.csv"
    checkout.aebench("trace", "make", "two_apps", *ONE_CV, "--out", str(made))
    result = checkout.aebench(
        *("trace", "import", "azure-functions", str(recorded), "--experiment", "two_apps", *ONE_CV),
        *("--out", str(imported)),
    )
    assert result.output.startswith(f"{recorded}: 20,000 invocations of 14 functions\n{imported}\nrequests     250 in ")
    assert imported.read_bytes() == made.read_bytes()


REFUSED = [
    (
        ("make", "two_apps"),
        "hydraserve/two_apps: its 4 points have 2 workloads. Say which, for example: --set grid.cv=8",
    ),
    (
        ("make", "cold_start"),
        "hydraserve/cold_start: its requests go by the answers before them, so no trace can be made of them. "
        "Expected an experiment with workload.kind open_loop or serverless",
    ),
    (("make", "nosuch"), "no figure, paper or topic 'nosuch'."),
    (
        ("make", "two_apps", *ONE_CV, "--set", "workload.trace.rate=90"),
        "hydraserve/two_apps: the trace has NUM requests in 500 s, too few for 45000, 90 a second. "
        "Expected a lower workload.trace.rate",
    ),
    (
        ("import", "azure-functions", "FILE", "--experiment", "hydraserve/hello", "--set", "grid.cv=1"),
        "hydraserve/hello: expected an experiment with serverless traffic from a synthetic trace",
    ),
    (
        ("import", "azure-functions", "FILE", "--experiment", "two_apps", *ONE_CV),
        "FILE: 86,400 s compressed last 257.143 s, workload.duration is 500. "
        "Run with --set workload.duration=257.143, or a lower workload.trace.compression",
    ),
    (
        ("import", "azure-functions", "NONE", "--experiment", "two_apps", *ONE_CV),
        "NONE: cannot be read (No such file or directory)",
    ),
]


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_what_cannot_be_done_gets_one_message(
    checkout: Checkout, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    file, out = tmp_path / "recorded.txt", tmp_path / "out.csv"
    file.write_text("app,func,end_timestamp,duration\na,f,1,0\n")
    places = {"FILE": str(file), "NONE": str(tmp_path / "none.txt")}
    result = checkout.aebench("trace", *(places.get(word, word) for word in words), "--out", str(out))
    said = checkout.refusal(result).replace(str(file), "FILE").replace(places["NONE"], "NONE")
    number = said.partition("the trace has ")[2].partition(" ")[0]
    said = said.replace(f"has {number} requests", "has NUM requests") if number else said
    assert said == f"Error: {message}"
    assert not out.exists()


def test_a_place_that_cannot_be_written_is_named(checkout: Checkout, tmp_path: Path) -> None:
    out = tmp_path / "none" / "out.csv"
    result = checkout.aebench("trace", "make", "two_apps", *ONE_CV, "--out", str(out))
    expected = "cannot be written (No such file or directory). Expected --out in a folder that is there"
    assert checkout.refusal(result) == f"Error: {out}: {expected}"


def test_a_damaged_trace_is_not_shown(checkout: Checkout, tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(BY_HAND.replace("3.0,b", "soon,b"))
    said = checkout.refusal(checkout.aebench("trace", "show", str(path)))
    assert said == f"Error: {path}, line 3, arrived_at: held 'soon', expected seconds, a finite number from 0 on"


def test_a_name_of_several_experiments_lists_them(checkout: Checkout, tmp_path: Path) -> None:
    said = checkout.refusal(checkout.aebench("trace", "make", "hydraserve", "--out", str(tmp_path / "out.csv")))
    assert said.startswith("Error: hydraserve is drawn from ")
    assert "hydraserve/cold_start, hydraserve/breakdown, " in said
    assert said.endswith(". Say which")
