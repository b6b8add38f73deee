"""What a run found, as JSON."""

import json
from collections.abc import Sequence
from typing import Any

from aebench.claims import Judgement
from aebench.figure import Cell
from aebench.report import ErrorSummary, FigureResult, PredictionError, finding, verdict_counts


def to_json(results: Sequence[FigureResult]) -> str:
    """The results for machines: one object a figure, in seconds and fractions."""
    return json.dumps({"figures": [_figure_json(result) for result in results]}, indent=2, allow_nan=False)


def _figure_json(result: FigureResult) -> dict[str, Any]:
    return {
        "figure": result.figure_id,
        "is_own": result.is_own,
        "backend": result.backend,
        "hardware": result.hardware,
        "wall_seconds": result.wall_seconds,
        "finding": finding(result.judgements),
        "verdicts": {str(verdict): count for verdict, count in verdict_counts(result.judgements).items()},
        "claims": [_judgement_json(judgement) for judgement in result.judgements],
        "prediction": None if result.prediction is None else _prediction_json(result.prediction),
    }


def _judgement_json(judgement: Judgement) -> dict[str, str]:
    return {
        "claim": judgement.claim.claim_id,
        "text": judgement.claim.text,
        "source": judgement.claim.source,
        "measured": judgement.measured,
        "deviation": judgement.deviation,
        "verdict": judgement.verdict.value,
        "detail": judgement.detail,
    }


def _prediction_json(prediction: PredictionError) -> dict[str, Any]:
    summaries = {"predicted": prediction.predicted, "calibration": prediction.calibration}
    return {
        "metric": prediction.metric,
        **{name: summary and _error_json(summary) for name, summary in summaries.items()},
        "points": [_cell_json(cell) for cell in prediction.cells],
    }


def _error_json(summary: ErrorSummary) -> dict[str, Any]:
    worst = _cell_json(summary.worst)
    return {"num_points": summary.num_points, "mape": summary.mape, "bias": summary.bias, "worst": worst}


def _cell_json(cell: Cell) -> dict[str, Any]:
    spread = cell.measured
    measured = spread and {"mean": spread.mean, "low": spread.low, "high": spread.high}
    return {
        "keys": dict(cell.keys),
        "measured": measured,
        "num_seeds": spread.num_seeds if spread else 0,
        "paper": cell.paper,
        "error": cell.error,
        "calibrated": cell.calibrated,
        "history": cell.history,
    }
