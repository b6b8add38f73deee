"""``[workload]`` of an experiment: what may stand in it."""

from typing import ClassVar, Literal

from pydantic import Field

from aebench.strict import Strict


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

    LATER: ClassVar[tuple[str, ...]] = ("mean",)

    kind: Literal["fixed", "lognormal", "empirical"]
    tokens: int | None = Field(default=None, ge=1)
    median: float | None = Field(default=None, gt=0)
    mean: float | None = Field(default=None, gt=0)
    """In place of the median: the mean before counts are cut to the limits."""
    sigma: float | None = Field(default=None, ge=0, le=10)
    min: int = Field(default=1, ge=1)
    max: int | None = Field(default=None, ge=1)
    values: list[int] | None = None


class Trace(Strict):
    """``[workload.trace]`` of serverless traffic: a synthetic trace of functions (``serving/workload/functions.py`` has
    the meanings and sources of its keys), or a file."""

    kind: Literal["synthetic", "file"] = "synthetic"
    file: str | None = None
    """Of kind "file": a trace CSV, relative to the working directory; it says everything."""
    rate: float | None = Field(default=None, gt=0)
    """Requests per second."""
    cv: float = Field(default=8.0, gt=0, le=100)
    """Factor on the CVs of the gaps."""
    seed: int | None = Field(default=None, ge=0)
    """Of the functions' invocations; None: the run's, so that runs differ in their trace as well."""
    num_functions: int = Field(default=424, ge=1, le=100_000)
    num_invocations: int = Field(default=1_980_951, ge=1, le=50_000_000)
    days: int = Field(default=14, ge=1, le=366)
    rate_sigma: float = Field(default=2.65, ge=0, le=10)
    diurnal: float = Field(default=1 / 3, ge=0, le=1)
    peak_hour: float = Field(default=20.0, ge=0, le=24)
    spike_factor: float = Field(default=10.0, ge=1, le=1000)
    spike_length: float = Field(default=600.0, ge=1, le=86_400)
    active_share: float = Field(default=1.0, ge=0.01, le=1)
    timer_share: float = Field(default=0.2, ge=0, le=1)
    timer_cv: float = Field(default=0.02, ge=0.001, le=10)
    gap_cv_median: float = Field(default=1.0, ge=0.001, le=10)
    gap_cv_sigma: float = Field(default=0.7, ge=0, le=1)
    window: float = Field(default=600.0, ge=1)
    """Seconds that a distribution is fitted to."""
    rate_cap: float = Field(default=5.0, ge=1)
    """Times the rate of the whole window that a fitted one may be."""
    stationary: bool = False
    """Whether a window that is drawn anew begins amid a gap; the original begins it with a whole one."""
    compression: float = Field(default=336.0, gt=0)
    """How much faster than recorded."""

    @property
    def compressed(self) -> float:
        """Seconds of replay that the trace is long enough for."""
        return self.days * 24 * 3600 / self.compression


class Application(Strict):
    """``[workload.applications.NAME]``: what the requests to its deployed models are like."""

    LATER: ClassVar[tuple[str, ...]] = ("share",)

    prompt: Lengths
    output: Lengths
    share: float | None = Field(default=None, ge=0, le=1)
    """Of the requests; None: whatever the trace gives. All applications say it, or none."""


class Workload(Strict):
    """``[workload]``: who asks for what, when."""

    LATER: ClassVar[tuple[str, ...]] = (
        *("first_after", "duration", "trace", "applications"),
        *("lengths", "high_priority_share", "warmups"),
    )

    kind: Literal["cold_requests", "open_loop", "serverless", "batches"]
    prompt_tokens: int = Field(default=32, ge=1)
    output_tokens: int = Field(default=650, ge=1)
    repeats: int = Field(default=3, ge=1)
    gap: float = Field(default=35.0, ge=0)
    """Seconds between an answer and the next request; of batches, between the last answer and the next batch."""
    phase: float = Field(default=1.0, ge=0)
    prepare: Literal["nothing", "evict", "load"] = "nothing"
    """What is done to the host cache: load other models before each measured request, or this one once."""
    prepare_output_tokens: int = Field(default=10, ge=1)
    num_requests: int = Field(default=100, ge=1)
    """Of an open loop; of batches: in each, of which there are ``warmups`` that do not count, and ``repeats``."""
    warmups: int = Field(default=0, ge=0)
    first_after: float = Field(default=0.0, ge=0)
    """Of an open loop: seconds before its arrivals begin, in which instances may start."""
    arrivals: Arrivals | None = None
    prompt: Lengths | None = None
    output: Lengths | None = None
    lengths: Literal["s-s", "m-m", "l-l", "s-l", "l-s", "sharegpt", "burstgpt"] | None = None
    """Of an open loop, in place of prompt and output: a trace (``serving/workload/length_traces.py``)."""
    high_priority_share: float = Field(default=0.0, ge=0, le=1)
    """Of an open loop: the probability of each request to have priority 1 and not 0."""
    duration: float | None = Field(default=None, gt=0)
    """Of serverless traffic: seconds in which requests arrive."""
    trace: Trace | None = None
    """Of serverless traffic: when which model is asked."""
    applications: dict[str, Application] = Field(default={})
    """Of serverless traffic: by the name that deployments give as theirs."""
