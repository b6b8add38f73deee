"""Recording: everything that came into a live run from outside its clock's thread, with the time at which it was heard.

That is what the ports completed, what clients sent, and what was lost. The rest of a run follows from it:
``serving.live.replay`` has the proof.
"""

from dataclasses import dataclass, field

from serving.core.request import Request
from serving.units import Seconds, Tokens

WorkerKey = tuple[int, int]
"""Instance id and rank of a worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageEnded:
    """A TIMED or PROFILE stage of a worker's start ended, or its growth."""

    at: Seconds
    worker: WorkerKey
    stage: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """So many bytes of a worker's fetch have arrived."""

    at: Seconds
    worker: WorkerKey
    serial: int
    """Which of the worker's fetches, from 0: the first is that of its start."""
    received: int
    done: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchFailed:
    """The rest of a fetch will never arrive; or, if all has arrived, it is gone again."""

    at: Seconds
    worker: WorkerKey
    serial: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """The worker's load number ``serial`` (from 0) has reached the device."""

    at: Seconds
    worker: WorkerKey
    serial: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KvMoved:
    """KV of a worker has reached another: of a pipeline the one that goes on alone, or another instance's."""

    at: Seconds
    worker: WorkerKey
    """Whose KV it was."""
    serial: int
    """Which of the worker's moves, from 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEnded:
    """An instance's step number ``serial`` (from 1) has its tokens."""

    at: Seconds
    instance: int
    num_stages: int
    """A pipeline and the single worker that follows it have one id, and count their steps each for itself."""
    serial: int
    num_output: tuple[Tokens, ...]
    """Per sequence of the plan."""
    final_tokens: tuple[Tokens, ...]
    """Per sequence: where it ends, as known by then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """A request came from another thread."""

    at: Seconds
    request: Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Aborted:
    """Its client took a request back."""

    at: Seconds
    request_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """An instance died."""

    at: Seconds
    instance: int
    reason: str


Event = StageEnded | Fetched | FetchFailed | Loaded | KvMoved | StepEnded | Submitted | Aborted | Lost


@dataclass(slots=True, eq=False)
class Recording:
    """The events of one run, in order; no two at the same time."""

    events: list[Event] = field(default_factory=list)
    ended_at: Seconds = 0.0
    """What was booked for this instant or before has run."""

    def add(self, event: Event) -> None:
        """The next event."""
        self.events.append(event)
