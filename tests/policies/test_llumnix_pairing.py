"""Who gives to whom, and which sequence goes (sheet llumnix, section 4)."""

from dataclasses import replace
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.core.instance import Instance
from serving.core.request import Sequence, State
from serving.policies.llumnix_pairing import Accepts, Order, Standing, leaving, moves, narrows
from serving.policies.llumnix_scaling import Range, Share, missing, superfluous
from tests.build import make_instance, make_sequence


def standing(instance_id: int, freeness: float, *, has_preempted: bool = False) -> Standing:
    instance = make_instance(64, instance_id=instance_id).instance
    return Standing(instance=instance, freeness=freeness, has_preempted=has_preempted)


def paired(
    standings: list[Standing], out_below: float = 3.0, in_above: float = 3.0, accepts: Accepts | None = None
) -> list[tuple[int, int]]:
    """Each offers all that it has, or a sequence where there is nothing to choose from."""
    given = moves(
        standings, out_below, in_above, lambda one: one.instance.running or [make_sequence()], accepts=accepts
    )
    return [(source.instance.instance_id, target.instance.instance_id) for source, target, _ in given]


def fits(sequence: Sequence, source: Standing, target: Standing) -> bool:
    """The target has a block of room for each prompt token."""
    del source
    return sequence.num_tokens <= target.room


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


def test_what_a_target_cannot_hold_goes_to_the_next_or_another_sequence_goes() -> None:
    standings = [standing(0, 1.0), standing(1, 20.0), standing(2, 9.0), standing(3, 2.0)]
    standings[1].room, standings[2].room = 30, 80
    standings[0].instance.running = [make_sequence(60), make_sequence(50)]
    standings[3].instance.running = [make_sequence(90), make_sequence(20)]
    assert paired(standings, accepts=fits) == [(0, 2), (3, 1)]
    standings[0].instance.running.append(make_sequence(25))
    given = list(moves(standings, 3.0, 3.0, lambda one: one.instance.running, accepts=fits))
    assert [(sequence.num_tokens, target.instance.instance_id) for _, target, sequence in given] == [(25, 1), (20, 2)]
    assert paired(standings) == [(0, 1), (3, 2)]  # the artifact does not ask


def test_who_has_nothing_to_give_takes_nobodys_partner() -> None:
    standings = [standing(0, -50.0), standing(1, 2.0), standing(2, 9.0)]
    nothing_from_0 = lambda one: [] if one is standings[0] else [make_sequence()]  # noqa: E731
    given = [(a, b) for a, b, _ in moves(standings, 3.0, 3.0, nothing_from_0, accepts=lambda *_: True)]
    assert given == [(standings[1], standings[2])]
    assert list(moves(standings, 3.0, 3.0, nothing_from_0)) == []  # the artifact pairs by freeness alone


def test_nobody_gives_and_takes_at_once() -> None:
    # Below 30 all give, above 3 all take. What 0 has fits into 1 only, which then cannot give to 2.
    standings = [standing(0, 1.0), standing(1, 10.0), standing(2, 25.0)]
    standings[1].room = 64
    standings[0].instance.running = [make_sequence(60)]
    standings[1].instance.running = [make_sequence(0 + 1)]
    standings[2].room = 5
    assert paired(standings, 30.0, 3.0, accepts=fits) == [(0, 1)]


@given(
    st.lists(st.tuples(st.floats(-100, 100), st.booleans(), st.booleans(), st.integers(0, 40)), max_size=12),
    st.floats(-10, 30),
    st.floats(-10, 30),
    st.booleans(),
)
def test_an_instance_is_in_one_migration_at_most_and_gives_to_one_that_is_freer(
    drawn: list[tuple[float, bool, bool, int]], out_below: float, in_above: float, asks: bool
) -> None:
    standings = []
    for index, (freeness, has_preempted, is_moving, room) in enumerate(drawn):
        one = standing(index, freeness, has_preempted=has_preempted)
        one.room = room
        one.instance.running = [make_sequence(1 + (index * 7 + room) % 40)]
        one.instance.move = object() if is_moving else None  # type: ignore[assignment]
        standings.append(one)
    accepts = fits if asks else None
    given = list(moves(standings, out_below, in_above, lambda one: one.instance.running, accepts=accepts))
    both = [one.instance.instance_id for source, target, _ in given for one in (source, target)]
    assert len(both) == len(set(both))
    for source, target, sequence in given:
        assert source.freeness < target.freeness > in_above
        assert source.freeness < out_below or source.has_preempted
        assert source.instance.move is None is target.instance.move
        assert sequence in source.instance.running
        assert not asks or fits(sequence, source, target)


def running() -> Instance:
    """Four that decode, oldest first, of 20, 60, 40 and 50 tokens, the third of high priority; a fifth is prefilled."""
    instance = make_instance(64).instance
    for index, num_tokens in enumerate((20, 60, 40, 50, 10)):
        sequence = make_sequence(num_tokens, 30, index)
        sequence.request = replace(sequence.request, priority=int(index == 2))
        if index < 4:
            sequence.token_times, sequence.num_computed = [0.5], num_tokens - 1
        sequence.state = State.RUNNING
        instance.running.append(sequence)
    return instance


@pytest.mark.parametrize(("order", "ids"), [("lcfs", [3, 1, 0]), ("sjf", [0, 3, 1, 2]), ("ljf", [1, 3, 0, 2])])
def test_the_orders(order: Order, ids: list[int]) -> None:
    assert [sequence.request.request_id for sequence in leaving(running(), order)] == ids


def test_one_of_high_priority_leaves_last_and_not_for_its_own_headroom_and_never_by_lcfs() -> None:
    instance = running()
    assert [sequence.request.request_id for sequence in leaving(instance, "sjf", lets_high_go=False)] == [0, 3, 1]
    instance.running = [instance.running[2], instance.running[4]]
    assert [sequence.request.request_id for sequence in leaving(instance, "sjf")] == [2]
    assert leaving(instance, "sjf", lets_high_go=False) == []
    assert leaving(instance, "lcfs") == []


def test_a_sequence_whose_client_has_left_stays_where_it_ends() -> None:
    instance = running()
    for sequence in instance.running:
        sequence.state = State.ABORTED
    assert leaving(instance, "sjf") == leaving(instance, "lcfs") == []


def test_one_that_is_computed_again_does_not_leave() -> None:
    instance = running()
    instance.running = instance.running[:1]
    instance.running[0].num_computed = 0
    assert leaving(instance, "sjf") == []


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


def share(num_free: float, num_used: float, num_running: int, num_waiting: int = 0, queued: float = 0.0) -> Share:
    return Share(
        instance=make_instance(64).instance,
        num_free=num_free,
        num_used=num_used,
        queued=queued,
        num_running=num_running,
        num_waiting=num_waiting,
    )


WANTED = Range(low=10.0, high=60.0, min_instances=1, max_instances=16)


def test_so_many_empty_instances_are_missing_as_bring_the_average_up() -> None:
    # (20 + 30) / 20 = 2.5; an empty one has 20 + 80 = 100 blocks: (50 + 100) / 20 = 7.5, (50 + 200) / 20 = 12.5
    shares = [share(20, 80, 10), share(30, 70, 10)]
    assert missing(shares, WANTED) == 2
    assert missing(shares, replace(WANTED, max_instances=3)) == 1
    assert missing(shares, replace(WANTED, low=2.5)) == 0
    assert missing(shares, replace(WANTED, low=2.6)) == 1
    assert missing([], WANTED) == 0


@pytest.mark.parametrize("first", [True, False])
def test_what_waits_somewhere_makes_no_empty_instance_smaller(first: bool) -> None:
    # (20 + 30 - 90) / 20 = -2; with empty ones of 100 blocks (-40 + 100 n) / 20: 3 and 8 for 1 and 2, 13 for 3
    shares = [share(20, 80, 9, 1, queued=90), share(30, 70, 10)]
    assert missing(shares if first else shares[::-1], WANTED) == 3


def test_one_is_superfluous_if_the_others_could_hold_what_it_has() -> None:
    # Without the last: (90 + 80 - 20) / 2 = 75
    shares = [share(90, 10, 1), share(80, 20, 1), share(80, 20, 0)]
    assert idle(shares, WANTED) is shares[2].instance
    assert idle(shares, replace(WANTED, high=75.0)) is None
    assert idle(shares, replace(WANTED, min_instances=3)) is None
    assert idle(shares[:1], WANTED) is None


def idle(shares: list[Share], wanted: Range) -> Instance | None:
    return superfluous(shares, wanted, counts_queue=True, fewest_running=False)


def test_a_queue_makes_none_superfluous_where_queues_count() -> None:
    # Without the last: (90 - 24 + 80 - 20) / 3 = 42, one that waits counting as one; without queues 150 / 2 = 75
    shares = [share(90, 10, 1, 4, queued=24), share(80, 20, 1), share(80, 20, 0)]
    assert superfluous(shares, WANTED, counts_queue=True, fewest_running=False) is None
    assert superfluous(shares, WANTED, counts_queue=False, fewest_running=False) is shares[2].instance


def test_the_paper_takes_the_one_with_the_fewest_running() -> None:
    shares = [share(90, 10, 1), share(100, 0, 0), share(80, 20, 1)]
    for one in (shares[0], shares[2]):
        one.instance.running.append(make_sequence())
    assert superfluous(shares, WANTED, counts_queue=True, fewest_running=True) is shares[1].instance
    assert superfluous(shares, WANTED, counts_queue=True, fewest_running=False) is shares[2].instance
