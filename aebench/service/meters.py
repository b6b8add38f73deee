"""Meters: what the service counts and times, in the text format that Prometheus reads."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator

from serving.live.output import EngineStats, FinishReason, ModelStats
from serving.units import Seconds

LONG = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0)
SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PER_MODEL = (
    ("sequences_held", "gauge", "Sequences that no instance has yet.", "held"),
    ("sequences_waiting", "gauge", "Sequences in the queues of instances.", "waiting"),
    ("sequences_running", "gauge", "Sequences that are being computed.", "running"),
    ("kv_blocks_used", "gauge", "KV blocks in use, over ready instances.", "kv_blocks_used"),
    ("kv_blocks", "gauge", "KV blocks, over ready instances.", "kv_blocks_total"),
    ("instances_ready", "gauge", "Instances that serve.", "instances_ready"),
    ("instances_starting", "gauge", "Instances in a cold start.", "instances_starting"),
    ("prompt_tokens_total", "counter", "Prompt tokens of all requests.", "prompt_tokens"),
    ("output_tokens_total", "counter", "Output tokens of all requests.", "output_tokens"),
    ("preemptions_total", "counter", "Sequences that lost their KV blocks and were computed again.", "preemptions"),
    ("instance_losses_total", "counter", "Instances that died or failed.", "losses"),
    ("cold_starts_total", "counter", "Instances that were started.", "cold_starts"),
    ("consolidations_total", "counter", "Pipelines that became single workers.", "consolidations"),
    ("migration_downtime_seconds_total", "counter", "For how long migrations paused sequences.", "migration_downtime"),
)
"""Metric, type, help, field of ModelStats."""


class Histogram:
    """Durations, counted per bucket."""

    def __init__(self, bounds: tuple[Seconds, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, duration: Seconds) -> None:
        """One more."""
        self._counts[bisect_left(self._bounds, duration)] += 1
        self._sum += duration

    def lines(self, name: str) -> Iterator[str]:
        """As Prometheus has it: each bucket counts those below it too."""
        total = 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self._sum:.6f}"
        yield f"{name}_count {total}"


class Meters:
    """Written and read on the event loop only."""

    def __init__(self) -> None:
        self.ttft = Histogram(LONG)
        self.tpot = Histogram(SHORT)
        self.e2e = Histogram(LONG)
        self._requests: Counter[tuple[str, int]] = Counter()
        self._finished: Counter[FinishReason] = Counter()

    def answered(self, path: str, status: int) -> None:
        """A request was answered."""
        self._requests[path, status] += 1

    def ended(self, reason: FinishReason) -> None:
        """A sequence ended."""
        self._finished[reason] += 1

    def text(self, stats: EngineStats, queued: int) -> str:
        """All of it, a line a value."""
        lines = [*self._of_service(queued), *_of_engine(stats)]
        return "\n".join(lines) + "\n"

    def _of_service(self, queued: int) -> Iterator[str]:
        requests = [
            f'{{path="{_escaped(path)}",code="{code}"}} {num}' for (path, code), num in sorted(self._requests.items())
        ]
        yield from _family("http_requests_total", "counter", "Requests by route and status.", requests)
        finished = [f'{{reason="{reason}"}} {num}' for reason, num in sorted(self._finished.items())]
        yield from _family("sequences_finished_total", "counter", "Sequences by how they ended.", finished)
        yield from _family("sequences_queued", "gauge", "Sequences without an output token yet.", [f" {queued}"])
        for name, what, histogram in (
            ("ttft_seconds", "From arrival to the first output token.", self.ttft),
            ("tpot_seconds", "Between output tokens, mean of a sequence.", self.tpot),
            ("e2e_seconds", "From arrival to the last output token.", self.e2e),
        ):
            yield from _family(name, "histogram", what, [])
            yield from histogram.lines(f"aebench_{name}")


def _of_engine(stats: EngineStats) -> Iterator[str]:
    for name, kind, what, attribute in PER_MODEL:
        yield from _family(name, kind, what, [_of_model(model, attribute) for model in stats.models])
    migrations = [
        f'{{model="{_escaped(model.model)}",outcome="{outcome}"}} {num}'
        for model in stats.models
        for outcome, num in model.migrations
    ]
    what = "Sequences that were to go to another instance, by what became of it."
    yield from _family("migrations_total", "counter", what, migrations)
    lag = [f" {stats.clock_lag:.6f}"]
    yield from _family("clock_lag_seconds", "gauge", "How late the engine's timers run, 99th percentile.", lag)


def _of_model(stats: ModelStats, attribute: str) -> str:
    return f'{{model="{_escaped(stats.model)}"}} {getattr(stats, attribute)}'


def _family(name: str, kind: str, what: str, values: Iterable[str]) -> Iterator[str]:
    yield f"# HELP aebench_{name} {what}"
    yield f"# TYPE aebench_{name} {kind}"
    for value in values:
        yield f"aebench_{name}{value}"


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
