"""How many workers HydraServe starts for a model, and how many of them with memory for all of it.

**Paper**: HydraServe, sheet section 3.1 (predictions and procedure of "ours").
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from serving.core.cluster import Deployment
from serving.core.hardware import Server
from serving.core.request import Sequence
from serving.units import Bytes, BytesPerSecond, Seconds


@dataclass(frozen=True, slots=True)
class GroupSize:
    """A pipeline group: ``stages`` workers, of which ``full`` have memory for the whole model."""

    stages: int
    full: int

    @property
    def slowdown(self) -> float:
        """g(s, w) = (s - w) + w / s: a low-memory worker has 1/s of the layers and 1/s of a GPU, so it takes a whole
        TPOT; a full-memory worker takes 1/s of one."""
        return (self.stages - self.full) + self.full / self.stages


@dataclass(slots=True)
class Profile:
    """Running averages over requests that a warm, unpipelined instance served."""

    num_prefills: int = 0
    prefill: Seconds = 0.0
    num_tpots: int = 0
    tpot: Seconds = 0.0

    def observe(self, sequence: Sequence) -> None:
        """Take in a finished request; one with a single token has no TPOT."""
        times = sequence.token_times
        if sequence.dispatched_at is None:
            return
        self.num_prefills += 1
        self.prefill += (times[0] - sequence.dispatched_at - self.prefill) / self.num_prefills
        if len(times) > 1:
            self.num_tpots += 1
            self.tpot += ((times[-1] - times[0]) / (len(times) - 1) - self.tpot) / self.num_tpots


def predicted_ttft(
    size: Bytes, group: GroupSize, rate: BytesPerSecond, prefill: Seconds, queue_delay: Seconds
) -> Seconds:
    """Fetch of 1/s of the model, the group's prefill, and the wait so far; what follows the fetch is not in it."""
    return size / (group.stages * rate) + prefill * group.slowdown + queue_delay


def predicted_tpot(tpot: Seconds, group: GroupSize, hop: Seconds) -> Seconds:
    """TPOT of the group, from that of one warm worker."""
    return tpot * group.slowdown + hop * (group.stages - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeRule:
    """The procedure, for one model at one moment."""

    deployment: Deployment
    ranked: list[tuple[Server, BytesPerSecond]]
    """Servers open for a fetch, best bandwidth first."""
    fits: Callable[[Server, int], bool]
    """Whether a server holds a worker of a group of so many stages (1: the whole model)."""
    ttft: Callable[[GroupSize, BytesPerSecond, Seconds, Seconds], Seconds]
    """Predicted TTFT from group, bandwidth, profiled prefill, queue delay."""
    tpot: Callable[[GroupSize, Seconds], Seconds]
    """Predicted TPOT from group and profiled TPOT."""
    max_stages: int

    def choose(self, required: int, profile: Profile | None, queue_delay: Seconds) -> GroupSize | None:
        """The smallest group with at least the required workers that meets the SLOs, else the largest that does,
        else one worker; None when no open server holds the whole model."""
        if not self._rates(1):
            return None
        if profile is not None and profile.num_tpots and profile.tpot > self.deployment.slos[1]:
            return GroupSize(1, 1)
        accepted: GroupSize | None = None
        for stages in range(1, self.max_stages + 1):
            best = next(self._accepted(stages, required, profile, queue_delay), None)
            accepted = best or accepted
            if accepted is not None and accepted.stages >= required:
                break
        return accepted or GroupSize(1, 1)

    def _accepted(
        self, stages: int, required: int, profile: Profile | None, queue_delay: Seconds
    ) -> Iterator[GroupSize]:
        """Groups of so many stages that meet the SLOs, fewest full-memory workers first."""
        low, full = self._rates(stages), self._rates(1)
        if len(low) < stages:
            return
        for num_full in range(min(stages, required), stages + 1):
            if num_full > len(full):
                return
            group = GroupSize(stages, num_full)
            rate = full[0] if stages == 1 else min(full[num_full - 1], low[stages - 1])
            if self._meets_slos(group, rate, profile, queue_delay):
                yield group

    def _meets_slos(
        self, group: GroupSize, rate: BytesPerSecond, profile: Profile | None, queue_delay: Seconds
    ) -> bool:
        prefill = 0.0 if profile is None else profile.prefill
        tpot = self.tpot(group, profile.tpot) if profile is not None and profile.num_tpots else 0.0
        if tpot > self.deployment.slos[1]:
            return False
        return self.ttft(group, rate, prefill, queue_delay) < self.deployment.slos[0]

    def _rates(self, stages: int) -> list[BytesPerSecond]:
        return [rate for server, rate in self.ranked if self.fits(server, stages)]
