"""The command line, specified by its text: help, listings, a run from names to files, and flags that cannot be."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aebench.catalog import ROOT_VARIABLE
from tests.aebench.checkout import Checkout, make_checkout

HEAVY = ("pandas", "numpy", "pyarrow", "matplotlib", "pydantic", "scipy", "jinja2")
COMMANDS = (
    "calibrate", "completion", "diff", "doctor", "list", "model", "plot", "report", "run", "serve", "storage",
    "trace",
)  # fmt: skip
OF_HYDRASERVE = (7, 8, 9, "13a", "13b")
OF_LLUMNIX = ("10a", "10b", 12, 13, "14a", "14b", 15)
FIGURES = "".join(f"plain,figure{number}\n" for number in (*OF_HYDRASERVE, *OF_LLUMNIX, 10, 14))
"""Bare names: not ``figure11``, which both papers have."""
POINTS = [f"pair=llama2-13b-v100,step={step}" for step in ("vllm", "prefetch", "stream", "overlap", "parallel")]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout with a smoke run of Figure 8; tests only read it."""
    checkout = make_checkout(tmp_path_factory.mktemp("ran"))
    result = checkout.run("figure8", "--scale", "smoke", "--jobs", "1")
    assert result.exit_code == 0, result.output
    return checkout


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout in which nothing may run."""
    return make_checkout(tmp_path_factory.mktemp("idle"))


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    program = (
        "import sys; from click.testing import CliRunner; from aebench.cli import cli\n"
        "print(CliRunner().invoke(cli, ['--help']).output)\n"
        f"print('imported:', [name for name in {HEAVY} if name in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.endswith("imported: []\n")
    listed = said.partition("Commands:\n")[2].splitlines()
    assert sorted(line.split()[0] for line in listed if line.startswith("  ") and line[2] != " ") == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(idle: Checkout, command: str) -> None:
    result = idle.aebench(command, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: aebench {command} ")


def test_list_shows_every_figure_of_a_paper_with_its_points(idle: Checkout) -> None:
    result = idle.aebench("list", "hydraserve")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].startswith("hydraserve  HydraServe: Minimizing Cold Start Latency")
    columns = {line.split()[0]: line.split()[1] for line in lines if line.startswith("  hydraserve/")}
    assert (columns["hydraserve/figure7"], columns["hydraserve/figure8"]) == ("60", "10")


def test_doctor_finds_this_machine_fit_and_a_missing_root_unfit(
    idle: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = idle.aebench("doctor", "--log-path", str(idle.logs))
    assert result.exit_code == 0
    assert "\ncan run: every figure on --backend sim\n" in result.stdout
    program = [sys.executable, "-m", "aebench", "doctor"]
    monkeypatch.setenv(ROOT_VARIABLE, "/nowhere")
    unfit = subprocess.run(program, capture_output=True, text=True, check=False)
    assert unfit.returncode == 2
    assert "missing  experiments  AEBENCH_ROOT=/nowhere: expected a folder that holds experiments/ and" in unfit.stdout
    assert unfit.stdout.endswith("\ncannot run yet: mend what is missing\n")


def test_a_dry_run_prints_the_points_and_writes_nothing(idle: Checkout) -> None:
    result = idle.run("figure8", "--scale", "smoke", "--jobs", "1", "--dry-run")
    assert result.exit_code == 0
    head = "hydraserve/breakdown: 5 points on sim, about 1.8 s with 1 job"
    assert result.stdout.splitlines() == [head, *(f"  {name}" for name in POINTS)]
    assert not idle.logs.exists()


def test_a_dry_run_for_machines_is_json(idle: Checkout) -> None:
    result = idle.run("figure8", "--scale", "smoke", "--runs", "2", "--dry-run", "--json")
    (planned,) = json.loads(result.stdout)["experiments"]
    assert (planned["experiment"], planned["figures"]) == ("hydraserve/breakdown", ["hydraserve/figure8"])
    assert planned["points"][:2] == [{"pair": "llama2-13b-v100", "step": "vllm", "seed": seed} for seed in (0, 1)]


def test_a_run_leaves_points_summary_figure_claims_and_how_to_repeat_it(ran: Checkout) -> None:
    folder = ran.newest("breakdown")
    assert sorted(path.name for path in folder.iterdir() if path.name != ".lock") == [
        "figure8.claim",
        "figure8.pdf",
        "figure8.png",
        "figure8.svg",
        "points",
        "run.json",
        "summary.csv",
    ]
    assert sorted(path.name for path in (folder / "points").iterdir()) == sorted(f"{name}.parquet" for name in POINTS)
    manifest = json.loads((folder / "run.json").read_text())
    assert (manifest["status"], manifest["num_points"], manifest["seeds"]) == ("success", 5, [0])


def test_a_run_prints_the_plan_the_finding_the_claims_the_files_and_the_log(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path)
    result = checkout.run("figure8", "--scale", "smoke", "--jobs", "1")
    lines = checkout.short(result.stdout).splitlines()
    folder = checkout.short(str(checkout.newest("breakdown")))
    assert (result.exit_code, result.stderr) == (0, "")
    assert lines[0] == "hydraserve/breakdown: 5 points on sim, about 1.8 s with 1 job"
    assert lines[2].startswith("hydraserve/figure8  ")
    assert lines[-5:] == [
        *(f"figure {folder}/figure8.{suffix}" for suffix in ("pdf", "png", "svg")),
        f"claims {folder}/figure8.claim",
        f"log    {folder}",
    ]


def test_json_of_a_run_is_nothing_but_json_even_when_points_fail(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path)
    words = ("figure8", "--set", "grid.step=parallel", "--set", "policy.kv_reserve=-1", "--json")
    result = checkout.run(*words)
    assert result.exit_code == 2
    assert [figure["figure"] for figure in json.loads(result.stdout)["figures"]] == ["hydraserve/figure8"]
    assert result.stderr.startswith("Some points failed: 1 of 2 points are kept. To finish: aebench ")


def test_failed_points_do_not_keep_the_next_experiment_from_running(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path)
    path = checkout.path("breakdown.toml")
    path.write_text(path.read_text() + "\n[policy]\nkv_reserve = -1\n")
    result = checkout.run("figure8", "figure7", "--scale", "smoke", "--set", "measure.drop_largest=1")
    assert result.exit_code == 2
    assert "\nerror in pair=llama2-13b-v100,step=" in result.stdout
    assert (checkout.newest("cold_start") / "figure7.claim").exists()


def test_plot_diff_and_report_read_what_a_run_wrote(ran: Checkout, tmp_path: Path) -> None:
    log_path = ("--log-path", str(ran.logs))
    plotted = ran.aebench("plot", *log_path, "--out", str(tmp_path))
    stem = tmp_path / "hydraserve" / "figure8"
    assert plotted.stdout == f"hydraserve/figure8  {stem}.pdf {stem}.png {stem}.svg\n"
    judged = ran.aebench("diff", "figure8", *log_path, "--json")
    assert [figure["figure"] for figure in json.loads(judged.stdout)["figures"]] == ["hydraserve/figure8"]
    reported = ran.aebench("report", *log_path, "--out", str(tmp_path / "page.html"))
    assert reported.stdout == f"{tmp_path}/page.html  (hydraserve/figure8)\n"
    assert (tmp_path / "page.html").read_text().startswith("<!DOCTYPE html>")


def test_what_cannot_be_written_names_the_flag_that_said_where(ran: Checkout, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    trace = tmp_path / "trace.csv"
    trace.write_text("arrived_at,model,num_prompt_tokens,num_output_tokens\n0,a,1,1\n")
    bad, log_path = str(tmp_path / "file" / "x"), ("--log-path", str(ran.logs))
    timeline = ("plot", "timeline", *log_path, "--point", "pair=llama2-13b-v100,step=vllm", "--out", bad)
    results = {
        f"{bad}/hydraserve: Not a directory": ran.aebench("plot", *log_path, "--out", bad),
        f"{bad}/hydraserve/breakdown: Not a directory": ran.aebench(*timeline),
        f"{bad}: Not a directory": ran.aebench("trace", "show", str(trace), "--out", f"{bad}/picture"),
        "/proc/page.html: ": ran.aebench("report", *log_path, "--out", "/proc/page.html"),
    }
    for said, result in results.items():
        assert result.exit_code == 2 and result.stderr.startswith(f"Error: {said}")
        assert result.stderr.endswith(". Choose another folder with --out\n")


def test_diff_ends_with_1_when_a_claim_fails(ran: Checkout, tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path)
    claims = checkout.path("figure8.claim")
    claims.write_text("c1  ttft_mean [pair=llama2-13b-v100] increasing over step  # a false one\n")
    judged = checkout.aebench("diff", "figure8", "--log-path", str(ran.logs))
    assert judged.exit_code == 1
    assert "\nhydraserve/figure8  0 of 1 claims pass, 1 fail" in judged.stdout


def test_claims_of_a_figure_that_no_paper_printed_are_ours(ran: Checkout, tmp_path: Path) -> None:
    checkout, words = make_checkout(tmp_path), ("diff", "figure8", "--log-path", str(ran.logs))
    assert "  what the paper says\n" in checkout.aebench(*words).stdout
    paper = checkout.path("paper.toml")
    paper.write_text(paper.read_text().replace('own     = ["ablation"', 'own     = ["figure8"'))
    said = checkout.aebench(*words).stdout
    assert "  our own claims (no paper printed this)\n" in said and "what the paper says" not in said


def test_diff_against_another_log_counts_the_points_that_differ(ran: Checkout, tmp_path: Path) -> None:
    other = make_checkout(tmp_path)
    assert other.run("figure8", "--scale", "smoke", "--set", "workload.prompt_tokens=2048").exit_code == 0
    compared = ran.aebench("diff", "--log-path", str(ran.logs), "--against", str(other.logs))
    against = compared.stdout.rpartition("\n\n")[2].splitlines()[0]
    found = "5 of 5 points differ"
    assert against == f"hydraserve/figure8  ttft_mean against {other.newest('breakdown')}: {found}"
    itself = ran.aebench("diff", "--log-path", str(other.logs), "--against", str(other.newest("breakdown").parents[2]))
    assert itself.stderr == f"Error: --against {other.logs} is the log path itself; give another log\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_for_the_shell(idle: Checkout, shell: str) -> None:
    result = idle.aebench("completion", shell)
    assert result.exit_code == 0
    assert f"_AEBENCH_COMPLETE={shell}_complete" in result.stdout


@pytest.mark.parametrize(("root", "said"), [("", FIGURES), ("/nowhere", "")])
def test_names_are_completed_and_a_missing_root_completes_to_nothing(idle: Checkout, root: str, said: str) -> None:
    environment = {
        **os.environ,
        ROOT_VARIABLE: root or str(idle.root),
        "COMP_WORDS": "aebench run figure",
        "COMP_CWORD": "2",
        "_AEBENCH_COMPLETE": "bash_complete",
    }
    program = "from aebench.cli import cli; cli(prog_name='aebench')"
    answer = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert (answer.stdout.lstrip("\n"), answer.stderr) == (said, "")


RUN_USAGE = "Usage: aebench run [OPTIONS] WHAT...\nTry 'aebench run --help' for help.\n\nError: "
REFUSED: list[tuple[str, str]] = [
    ("run", f"{RUN_USAGE}Missing argument 'WHAT...'."),
    ("run figure7 --jobs 0", f"{RUN_USAGE}Invalid value for '--jobs': 0 is not in the range 1<=x<=1024."),
    ("run figure7 --runs 0", f"{RUN_USAGE}Invalid value for '--runs': 0 is not in the range 1<=x<=1000."),
    ("run figre7", "Error: no figure, paper or topic 'figre7'. Did you mean figure7 or figure9 or figure8?"),
    ("run hello --backend live", "Error: hydraserve/hello does not run on --backend live, only on: sim"),
    (
        "run figure7 --resume",
        "Error: LOGS has no run of hydraserve/cold_start with these settings to resume. Leave out --resume",
    ),
    ("list hydraserv", "Error: no paper 'hydraserv'. Did you mean hydraserve? Known: hydraserve"),
    ("plot", "Error: LOGS: no such folder. Give --log-path the folder that runs were written to"),
    ("diff --against LOGS", "Error: --against LOGS is the log path itself; give another log"),
    ("report", "Error: LOGS: no such folder. Give --log-path the folder that runs were written to"),
    (
        "plot --fill history --log-path ROOT/history_logs",
        "Error: --fill history fills from history_logs, which --log-path is already; leave out --fill",
    ),
    (
        "rnu",
        "Usage: aebench [OPTIONS] COMMAND [ARGS]...\nTry 'aebench --help' for help.\n\n"
        "Error: No such command 'rnu'. Did you mean 'run'?",
    ),
]


@pytest.mark.parametrize(("line", "said"), REFUSED, ids=[line for line, _ in REFUSED])
def test_what_cannot_be_is_refused(idle: Checkout, line: str, said: str) -> None:
    words = line.replace("LOGS", str(idle.logs)).replace("ROOT", str(idle.root)).split()
    if words[0] in ("run", "plot", "diff", "report") and "--log-path" not in words:
        words += ["--log-path", str(idle.logs)]
    assert idle.refusal(idle.aebench(*words)) == said.replace("Known: hydraserve", _known(idle))
    assert not idle.logs.exists()


def _known(checkout: Checkout) -> str:
    papers = sorted(path.parent.name for path in checkout.root.glob("experiments/*/paper.toml"))
    return f"Known: {', '.join(papers)}"


def test_a_log_folder_that_cannot_be_made_is_refused(idle: Checkout, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "logs"
    result = idle.aebench("run", "figure8", "--log-path", str(path))
    said = f"Error: {path}: Not a directory. Choose another folder with --log-path\n"
    assert (result.exit_code, result.stderr) == (2, said)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into a folder without write permission")
def test_a_log_folder_without_write_permission_is_refused(idle: Checkout, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    result = idle.aebench("run", "figure8", "--log-path", str(tmp_path))
    tmp_path.chmod(0o700)
    assert result.exit_code == 2
    assert result.stderr.endswith(": Permission denied. Choose another folder with --log-path\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", [64, 4096])
def test_a_disk_that_takes_no_more_ends_the_run_with_one_message(tmp_path: Path, limit: int) -> None:
    checkout = make_checkout(tmp_path)
    program = (
        "import resource, signal; from aebench.cli import cli\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "cli(prog_name='aebench')"
    )
    words = ["run", "figure8", "--scale", "smoke", "--jobs", "1", "--log-path", str(checkout.logs)]
    environment = {**os.environ, ROOT_VARIABLE: str(checkout.root), "PYTHONDONTWRITEBYTECODE": "1"}
    answer = subprocess.run(
        [sys.executable, "-c", program, *words], env=environment, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 2, answer.stderr
    assert answer.stderr.count("\n") == 1
    assert answer.stderr.startswith(f"Error: {checkout.logs}")
    assert answer.stderr.endswith(": File too large. Choose another folder with --log-path\n")
    assert [name for name in checkout.written() if name.endswith((".parquet", ".tmp", "summary.csv"))] == []
