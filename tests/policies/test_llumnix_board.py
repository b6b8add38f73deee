"""The board: the same choices as looking at every instance each time, for less."""

from dataclasses import replace
from random import Random

import pytest

from serving.core.cluster import Cluster
from serving.core.instance import Instance, Phase
from serving.core.request import Sequence
from serving.policies.llumnix_board import Board
from serving.policies.llumnix_freeness import Report, Rule, dispatch_freeness, report_of
from tests.build import Bench, make_cluster, make_instance, make_requests

PAPER = Rule(variant="paper", watermark=0.01, target_load=1600, defragmentation=True)
MODEL = "llama2-7b"
PERIOD = 0.04


def make_board(rule: Rule = PAPER, period: float = PERIOD) -> Board:
    return Board(model=MODEL, rule=rule, period=period, any_high=True)


def instances(count: int, num_blocks: int = 64) -> list[Instance]:
    first = make_instance(num_blocks)
    others = [make_instance(num_blocks, instance_id=at, clock=first.clock) for at in range(1, count)]
    return [bench.instance for bench in (first, *others)]


def sequence(number: int, num_tokens: int = 64, priority: int = 0) -> Sequence:
    (request,) = make_requests(1, num_tokens, priority=priority)
    return Sequence(replace(request, request_id=number), 0.0)


class EveryTime:
    """What the board does, without remembering more than reports."""

    def __init__(self, rule: Rule, period: float) -> None:
        self.rule, self.period = rule, period
        self.reports: dict[Instance, Report] = {}

    def report(self, instance: Instance, now: float) -> Report:
        report = self.reports.get(instance)
        if report is None or now - report.taken_at >= self.period:
            report = self.reports[instance] = report_of(instance, now, self.rule, any_high=True)
        return report

    def give(self, given: Sequence, takers: list[Instance], now: float) -> Instance:
        reports = [self.report(instance, now) for instance in takers]
        freeness = [dispatch_freeness(report, self.rule, given.request.priority) for report in reports]
        at = freeness.index(max(freeness))
        reports[at].add(given)
        return takers[at]


@pytest.mark.parametrize("variant", ["paper", "artifact"])
@pytest.mark.parametrize("period", [0.0, PERIOD, 1.0])
def test_it_gives_to_whom_looking_at_all_would_give(variant: str, period: float) -> None:
    random, there, now = Random(f"board/{variant}/{period}"), instances(7), 0.0
    rule = replace(PAPER, variant=variant, target_load=512)  # type: ignore[arg-type]
    board, naive = make_board(rule, period), EveryTime(rule, period)
    chosen = []
    for number in range(600):
        now += random.choice((0.0, 0.001, 0.03))
        takers = there if random.random() < 0.7 else [one for one in there if one is not there[number % 7]]
        if random.random() < 0.2:  # a migration tick looks at all
            assert board.reports_of(there, now) == [naive.report(one, now) for one in there]
        if random.random() < 0.05:
            board.forget(there[3])
            naive.reports.pop(there[3], None)
        given = sequence(number, random.randint(1, 200), priority=int(random.random() < 0.2))
        target = board.give(given, takers, now)
        assert target is naive.give(given, takers, now)
        chosen.append(target)
        if random.random() < 0.8:
            target.waiting.append(given)
        for one in there:
            if len(one.waiting) > random.randint(0, 6):
                one.waiting.popleft()
    assert len({one.instance_id for one in chosen}) == 7


def test_a_report_lasts_for_the_period() -> None:
    board, (first, second) = make_board(), instances(2)
    (report, _) = board.reports_of([first, second], 1.0)
    first.waiting.append(sequence(0))
    assert board.reports_of([first], 1.0 + PERIOD / 2) == [report]
    assert report.num_waiting == 0
    (renewed,) = board.reports_of([first], 1.0 + PERIOD)
    assert (renewed.num_waiting, renewed.taken_at) == (1, 1.0 + PERIOD)


def test_what_was_given_counts_until_the_next_report() -> None:
    # Both are empty, so the first takes; then it has one waiting, whose prompt is 4 blocks: (64 - 4) / 1 against inf.
    board, there = make_board(), instances(2)
    assert [board.give(sequence(n), there, 0.0).instance_id for n in range(3)] == [0, 1, 0]
    assert board.give(sequence(3), there, PERIOD).instance_id == 0  # the llumlets know of none of them


def with_instances(cluster: Cluster, benches: list[Bench]) -> None:
    cluster.instances.extend(bench.instance for bench in benches)


def test_it_sees_who_comes_gets_ready_and_goes() -> None:
    cluster, board = make_cluster(), make_board()
    ready, starting, other = make_instance(), make_instance(), make_instance(model="opt-6.7b")
    starting.instance.phase = Phase.STARTING
    with_instances(cluster, [ready, starting, other])
    board.look(cluster)
    assert (board.ready, board.num_there) == ([ready.instance], 2)
    starting.instance.phase = Phase.READY
    board.look(cluster)
    assert board.ready == [ready.instance, starting.instance]
    cluster.instances.remove(ready.instance)
    board.look(cluster)
    assert (board.ready, board.num_there) == ([starting.instance], 1)


def test_it_looks_again_only_when_something_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, board = make_cluster(), make_board()
    with_instances(cluster, [make_instance()])
    board.look(cluster)
    monkeypatch.setattr(Cluster, "instances_of", None)  # not callable: to look would raise
    board.look(cluster)
    cluster.instances.clear()
    with pytest.raises(TypeError):
        board.look(cluster)
