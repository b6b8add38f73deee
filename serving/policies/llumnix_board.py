"""Board: what the global scheduler knows of one model's instances: who is there, what they reported, who is freest.

Nothing is looked at again that cannot have changed: instances while the cluster's list is the same, reports while none
is older than the period, freeness but of the one that a sequence went to. A dispatch then costs little more at 1,024
instances than at 16 (docs/performance.md).
"""

from dataclasses import dataclass, field
from math import inf

from serving.core.cluster import Cluster
from serving.core.instance import Instance, Phase
from serving.core.request import Sequence
from serving.policies.llumnix_freeness import Report, Rule, dispatch_freeness, report_of
from serving.units import Seconds


@dataclass(slots=True, eq=False)
class Board:
    """Of one model's instances."""

    model: str
    rule: Rule
    period: Seconds
    """A report that is so old is taken anew when it is needed."""
    any_high: bool = False
    """There were requests of high priority."""
    num_there: int = 0
    """Instances that start or are ready."""
    ready: list[Instance] = field(default_factory=list)
    """In order of launch."""
    _seen: list[Instance] = field(default_factory=list)
    """The cluster's list, of all models, when it was looked at."""
    _starting: list[Instance] = field(default_factory=list)
    _reports: dict[Instance, Report] = field(default_factory=dict)
    _takers: list[Instance] | None = None
    """Who the freeness below is of; None: it is out of date."""
    _taking: list[Report] = field(default_factory=list)
    """Their reports."""
    _freeness: dict[int, list[float]] = field(default_factory=dict)
    """Theirs, by the priority of what is dispatched."""
    _oldest: Seconds = -inf
    """When the oldest of their reports was taken."""

    def look(self, cluster: Cluster) -> None:
        """See who is there."""
        if cluster.instances == self._seen and all(one.phase is Phase.STARTING for one in self._starting):
            return
        self._seen = list(cluster.instances)
        self._starting = list(cluster.instances_of(self.model, Phase.STARTING))
        self.ready = list(cluster.instances_of(self.model, Phase.READY))
        self.num_there = sum(one.model == self.model for one in cluster.instances)

    def reports_of(self, instances: list[Instance], now: Seconds) -> list[Report]:
        """The last report of each, or a new one where that is too old."""
        found = []
        for instance in instances:
            report = self._reports.get(instance)
            if report is None or now - report.taken_at >= self.period:
                report = self._reports[instance] = report_of(instance, now, self.rule, any_high=self.any_high)
            found.append(report)
        return found

    def give(self, sequence: Sequence, takers: list[Instance], now: Seconds) -> Instance:
        """To the freest of those who take, the first of equals; its report counts the sequence from now on."""
        if takers != self._takers or now - self._oldest >= self.period:
            self._taking = self.reports_of(takers, now)
            self._oldest = min(report.taken_at for report in self._taking)
            self._takers = takers
            self._freeness.clear()
        priority = sequence.request.priority
        freeness = self._freeness.get(priority)
        if freeness is None:
            freeness = [dispatch_freeness(report, self.rule, priority) for report in self._taking]
            self._freeness[priority] = freeness
        at = freeness.index(max(freeness))
        self._taking[at].add(sequence)
        for each, values in self._freeness.items():
            values[at] = dispatch_freeness(self._taking[at], self.rule, each)
        return takers[at]

    def forget(self, instance: Instance) -> None:
        """It is gone."""
        self._reports.pop(instance, None)
        self._takers = None
