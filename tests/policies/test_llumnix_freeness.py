"""Freeness by hand, as Llumnix's paper and its artifact compute it (sheet, section 3): 1,000 blocks, watermark 1 %."""

from dataclasses import replace
from math import inf

import pytest

from serving.policies.llumnix_freeness import Report, Rule, dispatch_freeness, migration_freeness, report_of
from tests.build import make_instance, make_sequence

PAPER = Rule(variant="paper", watermark=0.01, target_load=1600, defragmentation=True)
ARTIFACT = replace(PAPER, variant="artifact")
EMPTY = Report(
    taken_at=0.0,
    num_blocks=1000,
    num_free=1000,
    num_running=0,
    num_waiting=0,
    first_demand=0,
    queue_demand=0.0,
    has_preempted=False,
    num_high=0,
)
BUSY = replace(EMPTY, num_free=400, num_running=10, num_waiting=3, first_demand=40, queue_demand=100.0)
"""600 blocks used by ten; three wait, for 100 blocks in all."""


@pytest.mark.parametrize(
    ("report", "rule", "dispatch", "migration"),
    [
        (EMPTY, PAPER, inf, inf),
        (EMPTY, ARTIFACT, inf, inf),
        (BUSY, PAPER, 36.0, 36.0),  # (400 - 40) / 10
        (BUSY, ARTIFACT, 290 / 13, 290 / 11),  # (400 - 10 - 100) / (10 + 3), / (10 + 1)
        (BUSY, replace(PAPER, defragmentation=False), 36.0, 40.0),  # the queue does not count when sequences move
        (BUSY, replace(ARTIFACT, defragmentation=False), 290 / 13, 39.0),
        (replace(BUSY, num_high=1), PAPER, -54.0, -54.0),  # headroom 1000 - 1600 / 16 = 900
        (replace(BUSY, num_high=3), PAPER, -54.0, -54.0),  # shared by all of them
        (replace(BUSY, num_high=1), ARTIFACT, -610 / 13, -610 / 11),
        (replace(BUSY, num_high=1), replace(PAPER, target_load=None), 36.0, 36.0),
        (replace(EMPTY, num_waiting=1, first_demand=5, queue_demand=4.5), PAPER, 995.0, 995.0),
        (replace(EMPTY, num_waiting=1, first_demand=5, queue_demand=4.5), ARTIFACT, 985.5, 985.5),
    ],
)
def test_freeness(report: Report, rule: Rule, dispatch: float, migration: float) -> None:
    assert dispatch_freeness(report, rule, priority=0) == dispatch
    assert migration_freeness(report, rule) == migration


def test_the_artifact_gathers_requests_of_high_priority() -> None:
    # The term of 900 blocks is taken off those that have none.
    assert dispatch_freeness(BUSY, ARTIFACT, priority=1) == -610 / 13
    assert dispatch_freeness(replace(BUSY, num_high=1), ARTIFACT, priority=1) == 290 / 13


def test_headroom_is_no_obstacle_for_those_whom_it_is_for() -> None:
    assert dispatch_freeness(replace(BUSY, num_high=2), PAPER, priority=1) == 36.0
    assert dispatch_freeness(BUSY, PAPER, priority=1) == 36.0


def test_what_is_dispatched_counts_before_the_next_report() -> None:
    report = replace(EMPTY)
    report.add(make_sequence(72))
    report.add(make_sequence(100))
    assert (report.num_waiting, report.first_demand, report.queue_demand) == (2, 5, 4.5 + 6.25)


def test_a_report_is_of_this_instant() -> None:
    # 64 blocks: a sequence of 72 tokens runs on 5 of them, one of 100 and one of 24 wait.
    bench = make_instance(64, max_sequences=1)
    sequences = [make_sequence(72, 30), make_sequence(100, 30), make_sequence(24, 30)]
    for sequence in sequences:
        bench.instance.add(sequence)
    bench.clock.run(until=2.5)
    report = report_of(bench.instance, 2.5, ARTIFACT, any_high=True)
    assert (report.num_blocks, report.num_free, report.num_running, report.num_waiting) == (64, 59, 1, 2)
    assert (report.first_demand, report.queue_demand, report.has_preempted, report.num_high) == (7, 7.75, False, 0)
    assert report_of(bench.instance, 2.5, PAPER, any_high=True).queue_demand == 0.0  # nobody asks


def test_one_that_was_preempted_is_seen_behind_one_of_high_priority() -> None:
    bench = make_instance(64)
    preempted, high, normal = (make_sequence(16, 4, index) for index in range(3))
    high.request = replace(high.request, priority=1)
    preempted.num_preemptions = 1
    bench.instance.waiting.extend([high, preempted, normal])
    report = report_of(bench.instance, 0.0, PAPER, any_high=True)
    assert (report.has_preempted, report.num_high) == (True, 1)
    preempted.num_preemptions = 0
    assert not report_of(bench.instance, 0.0, PAPER, any_high=True).has_preempted
