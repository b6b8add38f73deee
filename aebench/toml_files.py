"""What may stand in the TOML files of ``experiments/`` and ``figures/``, and reading them with clear errors."""

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from aebench.errors import SpecError, near_misses
from aebench.point import GridValue


class Strict(BaseModel):
    """A table in which every key is known."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Arrivals(Strict):
    """``[workload.arrivals]`` of an open loop."""

    kind: Literal["poisson", "gamma", "fixed", "trace"]
    rate: float | None = Field(default=None, gt=0)
    cv: float | None = Field(default=None, gt=0)
    gap: float | None = Field(default=None, gt=0)
    file: str | None = None
    """Trace CSV, relative to the working directory."""


class Lengths(Strict):
    """Distribution of token counts."""

    kind: Literal["fixed", "lognormal", "empirical"]
    tokens: int | None = Field(default=None, ge=1)
    median: float | None = Field(default=None, gt=0)
    sigma: float | None = Field(default=None, ge=0)
    min: int = Field(default=1, ge=1)
    max: int | None = Field(default=None, ge=1)
    values: list[int] | None = None


class Workload(Strict):
    """``[workload]``: who asks for what, when."""

    kind: Literal["cold_requests", "open_loop"]
    prompt_tokens: int = Field(default=32, ge=1)
    output_tokens: int = Field(default=650, ge=1)
    repeats: int = Field(default=3, ge=1)
    gap: float = Field(default=35.0, ge=0)
    """Seconds between an answer and the next request."""
    phase: float = Field(default=1.0, ge=0)
    prepare: Literal["nothing", "evict", "load"] = "nothing"
    """What is done to the host cache: load other models before each measured request, or this one once."""
    prepare_output_tokens: int = Field(default=10, ge=1)
    num_requests: int = Field(default=100, ge=1)
    first_after: float = Field(default=0.0, ge=0)
    """Of an open loop: seconds before its arrivals begin, in which instances may start."""
    arrivals: Arrivals | None = None
    prompt: Lengths | None = None
    output: Lengths | None = None


class Measure(Strict):
    """``[measure]``: which requests count."""

    labels: list[str] | None = None
    drop_largest: int = Field(default=0, ge=0)


class DeploymentTable(Strict):
    """``[deployments.MODEL]``: the provider's table entry."""

    size_gb: float = Field(gt=0)
    ttft_slo: float = Field(gt=0)
    tpot_slo: float = Field(gt=0)
    architecture: str | None = None
    """A name in MODELS; None: the deployment is named like it."""
    checkpoint: str | None = None
    """Folder that a live run loads, below the folder of models; None: it is named like the architecture."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the weights; None: that of the table of architectures, fp16."""


class ExperimentFile(Strict):
    """``experiments/<paper>/<name>.toml``."""

    title: str
    testbed: str
    backend: list[Literal["sim", "live"]] = ["sim"]
    system: str | None = None
    model: str | None = None
    gpu: str | None = None
    """Only servers with this GPU take part; all do by default."""
    max_servers: int | None = Field(default=None, ge=1)
    cache_gib: float = Field(default=0.0, ge=0)
    """Host memory per server for weights that stay."""
    seconds_per_point: float = Field(default=0.1, gt=0)
    """Estimate for ``list`` and ``--dry-run``, on one core."""
    workload: Workload
    measure: Measure = Measure()
    policy: dict[str, Any] = {}
    deployments: dict[str, DeploymentTable]
    grid: dict[str, list[GridValue]]
    exclude: list[dict[str, GridValue | list[GridValue]]] = []
    when: dict[str, dict[str, dict[str, Any]]] = {}
    """``[when.KEY.VALUE]`` is merged over the experiment for points with KEY = VALUE."""
    scale: dict[Literal["smoke"], dict[str, Any]] = {}
    live: dict[str, Any] = {}
    """Merged over the experiment where it runs on this machine, then ``[live.DEVICE]`` and ``[live.smoke]``."""
    sources: dict[str, str] = {}
    """Where numbers of this file come from, by key or table."""


class Startup(Strict):
    """``[server.NAME.startup]``; seconds and bytes per second."""

    container: float = Field(ge=0)
    libraries: float = Field(ge=0)
    context: float = Field(ge=0)
    engine: float = Field(ge=0)
    first_step: float = Field(ge=0)
    engine_load_gb_s: float = Field(gt=0)
    jitter: float = Field(ge=0, lt=1)


class ServerTable(Strict):
    """``[server.NAME]``."""

    gpu: str
    num_gpus: int = Field(ge=1)
    gpu_memory_gb: float = Field(gt=0)
    dram_gb: float = Field(gt=0)
    nic_gbps: float = Field(gt=0)
    fetch_gb_s: float | None = Field(default=None, gt=0)
    """None: whatever the NIC lets through."""
    pcie_gb_s: float = Field(gt=0)
    startup: Startup | None = None
    """None: nobody has measured it, so only live runs know it."""
    sources: dict[str, str]


class TestbedTable(Strict):
    """``[testbed.NAME]``."""

    __test__ = False  # not a test class, whatever its name looks like to pytest

    servers: dict[str, Annotated[int, Field(ge=1)]]
    stores: int = Field(ge=1)
    store_nic_gbps: float = Field(gt=0)
    isolation: Literal["shared", "exclusive", "follows_system"] = "follows_system"
    """How GPUs are lent: in slices, whole, or as each system needs them."""
    source: str


class TestbedsFile(Strict):
    """``experiments/<paper>/testbeds.toml``."""

    __test__ = False

    server: dict[str, ServerTable]
    testbed: dict[str, TestbedTable]


class PaperFile(Strict):
    """``experiments/<paper>/paper.toml``."""

    title: str
    venue: str
    about: str
    topics: dict[str, list[str]] = {}
    """Bare names for sets of this paper's figures."""
    aliases: list[str] = []
    """Figures of this paper that own their bare name."""
    says: str = "what the paper says"
    """What the claims are, above them; for a folder that no paper is behind."""


class PlotTable(Strict):
    """``plot = {...}`` of a figure."""

    kind: str
    x: str
    y: str
    series: str | None = None
    panel: str | None = None
    x_label: str = ""
    y_label: str = ""


class FigureFile(Strict):
    """``figures/<paper>/figureN.toml``."""

    shows: str
    experiment: str
    caption: str = ""
    plot: PlotTable
    paper: str | None = None
    """CSV of the paper's points, in the same folder."""
    paper_label: str = "paper"
    """What the legend calls them."""
    orientation: bool = False
    """The paper's points were made on other hardware: shown beside what was measured, never compared with it."""
    labels: dict[str, str] = {}


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
    return part in ("str", "int", "float", "bool", "[key]") or (isinstance(part, str) and part.startswith("list["))


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
