"""The report as a page: what is on it, whose claims it counts, and that it needs nothing from outside."""

import re
from dataclasses import replace

import pytest

from aebench import report
from aebench.claims import Judgement, Verdict
from aebench.markdown import to_html
from aebench.plotting.draw import draw
from aebench.report_html import ReportInput, inline_svg, render_html
from tests.aebench.test_report import FIGURE, PAPER, SUMMARY, is_calibrated, judged, make_page, mixed


def test_the_page_names_the_unit_of_each_metric():
    figure, summary = mixed()
    page = make_page()
    result = replace(page.figures[0].result, prediction=report.prediction_error(figure, summary, is_calibrated))
    html = render_html(replace(page, figures=[replace(page.figures[0], figure=figure, result=result)]))
    assert html.count('<td class="num">16.0 s</td>') == 2 and html.count('<td class="num">16.0</td>') == 8


def test_the_page_needs_nothing_from_outside(tmp_path):
    svg = draw(FIGURE, SUMMARY, tmp_path / "f", calibrated=is_calibrated, caption="c")[2].read_text()
    html = render_html(make_page(svg))
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!#)|@import|url\((?!#)|<script|<link""", html)
    assert html == render_html(make_page(svg))


def test_every_reference_in_the_page_meets_exactly_one_id(tmp_path):
    svg = draw(FIGURE, SUMMARY, tmp_path / "f", calibrated=is_calibrated, caption="c")[2].read_text()
    page = inline_svg(svg, "one", "first") + inline_svg(svg, "two", "second")
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)) > 20
    assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page)) and all(
        (one or other) in ids for one, other in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page)
    )


def test_the_page_escapes_what_files_say():
    html = render_html(make_page(judgements=judged(Verdict.FAIL, detail="<script>alert(1)</script>")))
    assert "<script>" not in html and "&lt;script&gt;" in html
    assert "Cold-start TTFT &lt;per model&gt;" in html
    assert "&lt;old&gt;" in html and "<code>NIC</code> is <em>slow</em> &amp;" in html


def test_the_page_marks_calibration_and_lists_parameters_by_area():
    page = make_page()
    assert [(area, len(found)) for area, found in page.parameters_by_area] == [("testbed", 2), ("GPUs", 1)]
    html = render_html(page)
    assert html.count('<tr class="calibration">') == 3  # its point, its error, its parameter
    assert "with uncommitted changes" in html
    assert "Nothing of this figure has run" in html


def test_the_overview_may_break_the_name_of_hardware_but_not_of_a_figure():
    page = make_page()
    result = replace(page.figures[0].result, backend="live", hardware="2-core <CPU>")
    html = render_html(replace(page, figures=[replace(page.figures[0], result=result)]))
    assert '<span class="nowrap">hydraserve/figure7</span>, live, 2-core &lt;CPU&gt;</a>' in html


def page_of(*judged_figures: tuple[str, bool, list[Judgement]]) -> ReportInput:
    """A page of figures by name, whether no paper printed them, and their judgements."""
    page = make_page()
    (section,) = page.figures
    results = [
        replace(section.result, figure_id=name, is_own=is_own, judgements=judgements)
        for name, is_own, judgements in judged_figures
    ]
    figures = [
        replace(section, figure=replace(FIGURE, figure_id=result.figure_id), result=result) for result in results
    ]
    return replace(page, figures=figures)


def test_the_lead_counts_claims_of_our_own_apart():
    printed = ("hydraserve/figure7", False, judged(Verdict.PASS, Verdict.FAIL))
    own = ("hydraserve/hello", True, judged(Verdict.PASS, Verdict.PASS))
    html = render_html(page_of(printed, own))
    lead = re.findall(r'<p class="lead">(.*?)</p>', html.replace("&#39;", "'"))
    assert lead == [
        "The papers' figures: 1 of 2 claims pass, 1 fail",
        "Our own studies, which no paper printed: 2 of 2 claims pass",
    ]
    assert page_of(own).findings == lead[1:] and page_of(printed).findings == lead[:1]
    headings = re.findall(r'<tr><th colspan="5"><a[^>]*>(.*?)</a> <span class="faint">(.*?)</span>', html)
    assert headings == [
        ("hydraserve/figure7", "what the paper says: 1 of 2 claims pass, 1 fail"),
        ("hydraserve/hello", "our own claims (no paper printed this): 2 of 2 claims pass"),
    ]


def test_the_claim_table_says_whose_the_claims_are():
    (section,) = page_of(("hydraserve/hello", True, judged(Verdict.PASS))).figures
    table = report.claim_table(section.result.judgements, section.result.says)
    assert table.startswith("verdict  claim  measured  deviation  our own claims (no paper printed this)\n")


@pytest.mark.parametrize(
    ("of_figure", "of_result", "said"),
    [
        ({"orientation": True}, {"hardware": "a GPU"}, "other hardware, not compared"),
        ({"paper_points": None}, {"hardware": "a GPU"}, "other hardware, not compared"),
        ({"paper_points": None}, {}, "none of the paper&#39;s points is known"),
        ({"paper_points": None, "paper_bars": PAPER}, {}, "the paper&#39;s bars are of other things, not compared"),
        ({"paper_points": None}, {"is_own": True, "hardware": "a GPU"}, "no paper&#39;s figure"),
    ],
)
def test_the_overview_says_why_nothing_is_compared(of_figure, of_result, said):
    page = make_page()
    (section,) = page.figures
    result = replace(section.result, prediction=None, **of_result)
    html = render_html(replace(page, figures=[replace(section, figure=replace(FIGURE, **of_figure), result=result)]))
    assert f'<td class="faint" colspan="4">{said}</td>' in html


def test_a_page_without_figures_renders():
    page = ReportInput(title="Empty", log_path="logs", figures=[], parameters=[], calibrations=[])
    assert "no claims" in render_html(page)


def test_markdown_knows_lists_tables_and_code():
    lists = "## A\nIntro:\n- one\n  more\n- **two**\n\n1. first\n\n"
    text = lists + "| a | b |\n|---|--:|\n| 1 | `x*y*z` |\n\n```py\n<x>\n```\n"
    assert to_html(text).split("\n") == [
        "<h4>A</h4>",
        "<p>Intro:</p>",
        "<ul><li>one more</li><li><strong>two</strong></li></ul>",
        "<ol><li>first</li></ol>",
        "<table><thead><tr><th>a</th><th>b</th></tr></thead>"
        "<tbody><tr><td>1</td><td><code>x*y*z</code></td></tr></tbody></table>",
        "<pre><code>&lt;x&gt;",
        "</code></pre>",
    ]
