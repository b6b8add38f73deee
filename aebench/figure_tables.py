"""What may stand in ``figures/<paper>/figureN.toml``."""

from pydantic import Field

from aebench.point import GridValue
from aebench.strict import Strict


class PlotTable(Strict):
    """``plot = {...}`` of a figure."""

    kind: str
    x: str
    y: str | None = None
    metrics: list[str] = Field(default=[])
    """In place of ``y``, for kinds that draw several."""
    near_zero: list[str] = Field(default=[])
    """Of these, those that may be near 0: they are in no error of prediction."""
    series: str | None = None
    panel: str | None = None
    x_label: str = ""
    y_label: str = ""


class RatioTable(Strict):
    """``ratio = {...}`` of a figure: the rows of one value of a key divided by those of another."""

    key: str
    of: GridValue
    to: GridValue


class FigureFile(Strict):
    """``figures/<paper>/figureN.toml``."""

    shows: str
    experiment: str
    caption: str = ""
    plot: PlotTable
    table: str | None = None
    """Which table of the run it draws: ``by_application``, ``by_model``; None: ``summary``."""
    where: dict[str, GridValue] = Field(default={})
    """Rows that it draws: those with these values, which are keys of its no more."""
    ratio: RatioTable | None = None
    """Every metric is that of ``of`` divided by that of ``to``, where all else is equal."""
    paper: str | None = None
    """CSV of the paper's points, in the same folder."""
    paper_label: str = "paper"
    """What the legend calls them."""
    paper_bars: str | None = None
    """CSV of the paper's bars where they are of other things than ours (columns ``bar``, ``plot.series``, ``plot.y``,
    ``source``): shown as a distribution, never compared bar by bar."""
    orientation: bool = False
    """The paper's points were made on other hardware: shown beside what was measured, never compared with it."""
    labels: dict[str, str] = Field(default={})
