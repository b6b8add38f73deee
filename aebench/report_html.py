"""The report as one self-contained HTML page: claims first, then each figure with errors and provenance."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from aebench import report
from aebench.claims import Judgement, Verdict
from aebench.figure import Figure, value_text
from aebench.markdown import to_html
from aebench.report import FigureResult
from aebench.run_manifest import RunManifest
from aebench.stages import StageRow

VERDICTS: Mapping[Verdict, tuple[str, str]] = {
    Verdict.PASS: ("✓", "what was measured is where the paper says"),
    Verdict.SHAPE: ("≈", "order and direction hold, the size does not"),
    Verdict.FAIL: ("✗", "what was measured contradicts the paper"),
    Verdict.UNSURE: ("?", "the 95% interval cannot decide"),
    Verdict.CALIBRATED: ("□", "holds, but rests only on points used for calibration"),
    Verdict.HISTORY: ("↺", "uses points filled in from a shipped log"),
    Verdict.ABSENT: ("–", "a point that the claim needs was not run"),
}
"""Sign and meaning of each verdict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One number that a result rests on."""

    area: str
    """Where it is from, the heading it is listed under: ``hydraserve, testbed_i``, ``GPUs``."""
    name: str
    value: str
    unit: str
    source: str
    calibrated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """One declaration of ``calibration.toml``: a parameter that was set from the paper's points."""

    parameter: str
    value: str
    unit: str
    points: Sequence[str]
    """The points used, as text."""
    residual: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureSection:
    """One figure's part of the page."""

    figure: Figure
    result: FigureResult
    svg: str | None
    """The drawn figure; None: nothing of it has run."""
    caption: str
    manifest: RunManifest | None
    """The run it was drawn from."""
    log: str
    """Where that run lies, as the user would type it."""
    departures: Sequence[str] = ()
    """Departures of the systems shown from their papers, a sentence each."""
    stages: Sequence[StageRow] = ()
    """The stages of the run's cold starts."""

    @property
    def title(self) -> str:
        """The figure, and the hardware where that is not the paper's."""
        hardware = self.result.hardware
        return (
            self.figure.figure_id if hardware is None else f"{self.figure.figure_id}, {self.result.backend}, {hardware}"
        )

    @property
    def uncompared(self) -> str:
        """Why there is no error of prediction, where there is none."""
        if self.result.is_own:
            return "no paper's figure"
        if self.result.hardware is not None:
            return "other hardware, not compared"
        if self.figure.paper_bars is not None:
            return "the paper's bars are of other things, not compared"
        return "none of the paper's points is known"

    @property
    def anchor(self) -> str:
        """The section's id in the page, also the prefix of the ids inside its drawing."""
        return re.sub(r"[^A-Za-z0-9]+", "-", self.title)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportInput:
    """Everything the page shows."""

    title: str
    log_path: str
    figures: Sequence[FigureSection]
    parameters: Sequence[Parameter]
    calibrations: Sequence[Calibration]

    @property
    def judgements(self) -> list[Judgement]:
        """The judgements of all figures."""
        return [judgement for section in self.figures for judgement in section.result.judgements]

    @property
    def findings(self) -> list[str]:
        """What is found of the papers' figures, then of those that no paper printed; what there is none of is left
        out."""
        found = []
        for is_own, whose in ((False, "The papers' figures"), (True, "Our own studies, which no paper printed")):
            sections = [section for section in self.figures if section.result.is_own is is_own]
            judgements = [judgement for section in sections for judgement in section.result.judgements]
            if sections:
                found.append(f"{whose}: {report.finding(judgements)}")
        return found or [report.finding([])]

    @property
    def parameters_by_area(self) -> list[tuple[str, list[Parameter]]]:
        """The parameters under their areas, areas in the order in which they first come."""
        areas = list(dict.fromkeys(parameter.area for parameter in self.parameters))
        ordered = sorted(self.parameters, key=lambda parameter: areas.index(parameter.area))
        return [(area, list(found)) for area, found in groupby(ordered, key=lambda each: each.area)]


def render_html(page: ReportInput) -> str:
    """The page; it refers to nothing outside itself."""
    environment = Environment(
        loader=PackageLoader("aebench", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "value": value_text,
        "unit_at": report.unit_at,
        "spread": report.spread_text,
        "percent": report.signed_percent,
        "duration": report.duration_text,
        "markdown": to_html,
        "point_kind": report.point_kind,
        "verdict_counts": report.verdict_counts,
        "finding": report.finding,
    }
    template = environment.get_template("report.html")
    return template.render(page=page, verdicts=VERDICTS, inline_svg=inline_svg)


def inline_svg(svg: str, prefix: str, label: str) -> Markup:
    """A drawing as an element of a page: ids and styles made its own, prolog and metadata left out."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, count=1, flags=re.DOTALL)
    body = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', body)
    body = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", body)
    body = body.replace("*{", f"#{prefix}-drawing *{{")
    root = Markup('<svg id="{}-drawing" role="img" aria-label="{}"').format(prefix, label)
    return root + Markup(body.removeprefix("<svg"))
