"""The documents are true: the files that docs/add-a-paper.md tells to write run as they stand."""

import re
from pathlib import Path

from click.testing import CliRunner

from aebench.cli import cli
from serving.records import MIGRATION_OUTCOMES

DOCS = Path(__file__).parent.parent / "docs"
DOC = DOCS / "add-a-paper.md"


def test_the_paper_of_the_documents_runs_as_it_stands(tmp_path: Path) -> None:
    files = re.findall(r"^`([a-z0-9/_.]+)`.*?```\w+\n(.*?)```", DOC.read_text(), flags=re.DOTALL | re.MULTILINE)
    for name, content in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert len(files) == 6
    words = ["run", "toy/figure1", "--log-path", str(tmp_path / "logs"), "--jobs", "1"]
    result = CliRunner().invoke(cli, words, env={"AEBENCH_ROOT": str(tmp_path)})
    assert result.exit_code == 0, result.output
    assert "toy/figure1  2 of 2 claims pass" in result.output


def test_every_outcome_of_a_migration_is_explained() -> None:
    text = (DOCS / "serving.md").read_text()
    assert [
        outcome for outcome in MIGRATION_OUTCOMES if f"`{outcome}`" not in text and f'"{outcome}"' not in text
    ] == []
