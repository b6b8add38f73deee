"""What may stand in the TOML files of ``experiments/`` and ``figures/``, and reading them with clear errors."""

import re
import tomllib
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from aebench.errors import SpecError, near_misses
from aebench.point import GridValue
from aebench.strict import Strict
from aebench.ticks import MAX_DIGITS
from aebench.workload_tables import Workload


class Measure(Strict):
    """``[measure]``: which requests count, and what is made of them."""

    LATER: ClassVar[tuple[str, ...]] = (
        "slo",
        "token_gaps",
        "breakdown",
        "metrics",
        "by",
        "sample_period",
        "dispatches",
        "time_digits",
        "computed_for",
    )

    labels: list[str] | None = None
    drop_largest: int = Field(default=0, ge=0)
    slo: list[Literal["ttft", "tpot"]] = Field(default=["ttft", "tpot"], min_length=1)
    """Which SLOs ``slo_attainment`` and ``goodput`` are about."""
    token_gaps: bool = True
    """Whether logs keep the time of every token; without, ``itl_p99`` is empty."""
    dispatches: bool = True
    """Whether logs keep what was decided about single sequences, to which instance they go and where they move, and
    their pauses, which records of migrations have as well."""
    computed_for: bool = True
    """Whether logs keep how long each request was computed for; without, ``decode_execution`` is empty."""
    time_digits: int | None = Field(default=None, ge=2, le=MAX_DIGITS)
    """Digits of a second that logs keep of every time, which makes them small; None: all."""
    breakdown: list[Literal["application", "model"]] = Field(default=[])
    """Tables beside ``summary.csv``, which has the columns about instances and their memory then."""
    metrics: list[Literal["llumnix", "migration"]] = Field(default=[])
    """Those that ``summary.csv`` has as well: ``aebench.llumnix_metrics``, ``aebench.migration_metrics``."""
    by: Literal["priority"] | None = None
    """What the requests of a point are told apart by: ``summary.csv`` has a row for each kind, and a column."""
    sample_period: float | None = Field(default=None, gt=0)
    """Seconds between looks at all instances, of which ``by_time.csv`` is made; None: nobody looks."""


class DeploymentTable(Strict):
    """``[deployments.MODEL]``: the provider's table entry, or that of many models alike."""

    size_gb: float = Field(gt=0)
    ttft_slo: float | None = Field(default=None, gt=0)
    """Seconds; None: its clients ask for none, which only a system that plans by it refuses."""
    tpot_slo: float | None = Field(default=None, gt=0)
    architecture: str | None = None
    """A name in MODELS; None: the deployment is named like it."""
    checkpoint: str | None = None
    """Folder that a live run loads, below the folder of models; None: it is named like the architecture."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the weights; None: that of the table of architectures, fp16."""
    copies: int | None = Field(default=None, ge=1)
    """Deployed models of this kind, named ``MODEL/0``, ``MODEL/1``...; None: one, named ``MODEL``."""
    application: str | None = Field(default=None, min_length=1)
    """What its customers use it for."""


class ExperimentFile(Strict):
    """``experiments/<paper>/<name>.toml``."""

    LATER: ClassVar[tuple[str, ...]] = ("cache_gb",)

    title: str
    testbed: str
    backend: list[Literal["sim", "live"]] = Field(default=["sim"])
    system: str | None = None
    model: str | None = None
    gpu: str | None = None
    """Only servers with this GPU take part; all do by default."""
    max_servers: int | None = Field(default=None, ge=1)
    cache_gib: float = Field(default=0.0, ge=0)
    """Host memory per server for weights that stay."""
    cache_gb: float | dict[str, float] | None = None
    """The same in GB, or by type of server in GB; None: as ``cache_gib`` says."""
    seconds_per_point: float = Field(default=0.1, gt=0)
    """Estimate for ``list`` and ``--dry-run``, on one core."""
    workload: Workload
    measure: Measure = Measure()
    policy: dict[str, Any] = Field(default={})
    deployments: dict[str, DeploymentTable]
    grid: dict[str, list[GridValue]]
    sets: dict[str, str] = Field(default={})
    """Grid keys whose values are those of a field: ``rate = "workload.arrivals.rate"``."""
    include: list[dict[str, GridValue | list[GridValue]]] = Field(default=[])
    """Cells of the grid that there are: those that one of these speaks of; none given: all."""
    exclude: list[dict[str, GridValue | list[GridValue]]] = Field(default=[])
    """Cells that there are not, although included."""
    when: dict[str, dict[str, dict[str, Any]]] = Field(default={})
    """``[when.KEY.VALUE]`` is merged over the experiment for points with KEY = VALUE."""
    scale: dict[Literal["smoke"], dict[str, Any]] = Field(default={})
    live: dict[str, Any] = Field(default={})
    """Merged over the experiment where it runs on this machine, then ``[live.DEVICE]`` and ``[live.smoke]``."""
    sources: dict[str, str] = Field(default={})
    """Where numbers of this file come from, by key or table."""


class PaperFile(Strict):
    """``experiments/<paper>/paper.toml``."""

    title: str
    venue: str
    about: str
    topics: dict[str, list[str]] = Field(default={})
    """Bare names for sets of this paper's figures."""
    aliases: list[str] = Field(default=[])
    """Figures of this paper that own their bare name."""
    own: list[str] = Field(default=[])
    """Figures that no paper printed: their claims are ours, and counted apart."""


FileModel = TypeVar("FileModel", bound=Strict)


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SpecError(path, "", "there is no such file") from error
    except UnicodeDecodeError as error:
        raise SpecError(path, "", f"not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise SpecError(path, "", f"cannot be read: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise SpecError(path, "", f"not valid TOML: {error}") from error


def check(model: type[FileModel], tables: dict[str, Any], path: Path | str) -> FileModel:
    """The tables as the model says they must be, or a SpecError that names the first wrong key."""
    try:
        return model.model_validate(tables)
    except ValidationError as error:
        found = error.errors()
        # a misspelt key is missing as well; the misspelling is what to show
        first = next((each for each in found if each["type"] == "extra_forbidden"), found[0])
        where = [str(part) for part in first["loc"] if not _is_union_branch(part)]
        raise SpecError(path, ".".join(where), _explain(model, first, where)) from error


def _is_union_branch(part: int | str) -> bool:
    return part in ("str", "int", "float", "bool", "[key]") or str(part).startswith(("list[", "dict["))


def _explain(model: type[BaseModel], first: Any, where: list[str]) -> str:
    if first["type"] == "extra_forbidden":
        known = _known_keys(model, where[:-1])
        return f"unknown key.{near_misses(where[-1], known)} Known: {', '.join(sorted(known))}"
    if first["type"] == "missing":
        return "missing; this key is required"
    return f"expected {expectation(first['msg'])}, got {shown(first['input'])}"


def expectation(message: str) -> str:
    """What pydantic expected, in the words of TOML."""
    wanted = message.removeprefix("Input should be ")
    wanted = re.sub(r"^(greater|less) than", r"a number \1 than", wanted)
    wanted = re.sub(r"^List should have (at least \d+ items?) .*", r"\1", wanted)
    wanted = re.sub(r"(, got | or instance of ).*", "", wanted)
    wanted = wanted.replace("a valid dictionary", "a table").replace("an object", "a table")
    return re.sub(r"^a valid ", "a ", wanted).replace("a integer", "an integer").replace("a list", "an array")


def shown(value: Any) -> str:
    """A value of a TOML file in a message, cut short."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _known_keys(model: type[BaseModel], where: list[str]) -> list[str]:
    """Keys of the table at a path; walks through dicts and optional tables."""
    for part in where:
        if part in model.model_fields:
            inner = _table_type(model.model_fields[part].annotation)
            if inner is None:
                return []
            model = inner
    return list(model.model_fields)


def _table_type(annotation: Any) -> type[BaseModel] | None:
    """The table inside an annotation such as ``Table``, ``Table | None``, ``dict[str, Table]``, ``list[Table]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_table_type(argument) for argument in getattr(annotation, "__args__", ()))
    return next((found for found in inner if found is not None), None)
