"""Who gives to whom, and which sequence goes (sheet llumnix, section 4)."""

from dataclasses import replace
from math import inf

import pytest

from serving.core.instance import Instance
from serving.policies.llumnix_pairing import Order, Standing, leaving, narrows, pairs
from serving.policies.llumnix_scaling import Range, Share, average, missing, superfluous
from tests.build import make_instance, make_sequence


def standing(instance_id: int, freeness: float, *, has_preempted: bool = False) -> Standing:
    instance = make_instance(64, instance_id=instance_id).instance
    return Standing(instance=instance, freeness=freeness, has_preempted=has_preempted)


def paired(standings: list[Standing], out_below: float = 3.0, in_above: float = 3.0) -> list[tuple[int, int]]:
    found = pairs(standings, out_below, in_above)
    return [(source.instance.instance_id, target.instance.instance_id) for source, target in found]


def test_the_least_free_gives_to_the_freest_and_the_second_to_the_second() -> None:
    standings = [standing(0, 2.0), standing(1, 8.0), standing(2, -5.0), standing(3, inf), standing(4, 3.0)]
    assert paired(standings) == [(2, 3), (0, 1)]


def test_who_is_left_over_waits() -> None:
    assert paired([standing(0, 1.0), standing(1, 0.0), standing(2, 9.0)]) == [(1, 2)]
    assert paired([standing(0, 1.0), standing(1, 2.0)]) == []
    assert paired([standing(0, 5.0), standing(1, 9.0)]) == []


def test_one_that_dropped_kv_gives_and_takes_none() -> None:
    standings = [standing(0, 7.0, has_preempted=True), standing(1, 20.0), standing(2, 30.0, has_preempted=True)]
    assert paired(standings) == [(0, 1)]  # and the one with 30 gives to nobody who is less free


def test_two_thresholds() -> None:
    standings = [standing(0, 1.0), standing(1, 2.0), standing(2, 2.9)]
    assert paired(standings, out_below=1.5, in_above=2.5) == [(0, 2)]


def test_a_pair_of_which_one_is_busy_is_left_out() -> None:
    standings = [standing(0, 2.0), standing(1, 8.0), standing(2, -5.0), standing(3, inf)]
    standings[3].instance.move = object()  # type: ignore[assignment]
    assert paired(standings) == [(0, 1)]


def running() -> Instance:
    """Four that decode, oldest first, of 20, 60, 40 and 50 tokens, the third of high priority; a fifth is prefilled."""
    instance = make_instance(64).instance
    for index, num_tokens in enumerate((20, 60, 40, 50, 10)):
        sequence = make_sequence(num_tokens, 30, index)
        sequence.request = replace(sequence.request, priority=int(index == 2))
        if index < 4:
            sequence.token_times, sequence.num_computed = [0.5], num_tokens - 1
        instance.running.append(sequence)
    return instance


@pytest.mark.parametrize(("order", "request_id"), [("lcfs", 3), ("sjf", 0), ("ljf", 1)])
def test_the_orders(order: Order, request_id: int) -> None:
    chosen = leaving(running(), order)
    assert chosen is not None
    assert chosen.request.request_id == request_id


def test_one_of_high_priority_leaves_when_there_is_no_other_and_never_by_lcfs() -> None:
    instance = running()
    instance.running = [instance.running[2], instance.running[4]]
    chosen = leaving(instance, "sjf")
    assert chosen is not None
    assert chosen.request.request_id == 2
    assert leaving(instance, "lcfs") is None


def test_one_that_is_computed_again_does_not_leave() -> None:
    instance = running()
    instance.running = instance.running[:1]
    instance.running[0].num_computed = 0
    assert leaving(instance, "sjf") is None


def test_without_defragmentation_the_gap_must_become_smaller() -> None:
    # Source: 4 of 64 blocks free and 5 running, 0.8. Target: 64 free, one running, 64. Moving 10: 14 / 4 and 54 / 2.
    source = Standing(instance=running(), freeness=0.8, has_preempted=False)
    target = Standing(instance=make_instance(64).instance, freeness=64.0, has_preempted=False)
    target.instance.running.append(make_sequence())
    assert source.instance.pool is not None
    source.instance.pool.extend(make_sequence(request_id=9), 60 * 16)
    assert narrows(source, target, 10, in_above=3.0)
    assert not narrows(source, target, 10, in_above=27.0)  # the target would have 27
    assert not narrows(source, replace(target, freeness=20.0), 10, in_above=3.0)  # from 19.2 apart to 23.5


def share(num_free: float, num_used: float, num_requests: int) -> Share:
    return Share(instance=make_instance(64).instance, num_free=num_free, num_used=num_used, num_requests=num_requests)


WANTED = Range(low=10.0, high=60.0, min_instances=1, max_instances=16)


def test_so_many_empty_instances_are_missing_as_bring_the_average_up() -> None:
    # (20 + 30) / 20 = 2.5; an empty one has 20 + 80 = 100 blocks: (50 + 100) / 20 = 7.5, (50 + 200) / 20 = 12.5
    shares = [share(20, 80, 10), share(30, 70, 10)]
    assert average(shares) == 2.5
    assert missing(shares, WANTED) == 2
    assert missing(shares, replace(WANTED, max_instances=3)) == 1
    assert missing(shares, replace(WANTED, low=2.5)) == 0
    assert missing([], WANTED) == 0


def test_one_is_superfluous_if_the_others_could_hold_what_it_has() -> None:
    # Without the last: (90 + 80 - 20) / 2 = 75
    shares = [share(90, 10, 1), share(80, 20, 1), share(80, 20, 0)]
    assert superfluous(shares, WANTED, fewest_running=False) is shares[2].instance
    assert superfluous(shares, replace(WANTED, high=75.0), fewest_running=False) is None
    assert superfluous(shares, replace(WANTED, min_instances=3), fewest_running=False) is None
    assert superfluous(shares[:1], WANTED, fewest_running=False) is None


def test_the_paper_takes_the_one_with_the_fewest_running() -> None:
    shares = [share(90, 10, 1), share(100, 0, 0), share(80, 20, 1)]
    for one in (shares[0], shares[2]):
        one.instance.running.append(make_sequence())
    assert superfluous(shares, WANTED, fewest_running=True) is shares[1].instance
    assert superfluous(shares, WANTED, fewest_running=False) is shares[2].instance
