"""Migration: a running sequence goes on elsewhere, or stays as if nothing had been. Steps take a second, blocks hold 16
tokens, a prompt of 64 has its first token at 1 s, and from then on one at every second."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.core.actions import Method
from serving.core.clock import SimClock
from serving.core.request import Sequence, State
from serving.records import MigrationRecord, PauseRecord
from serving.units import Seconds
from tests.build import make_sequence
from tests.migrating import BLOCK, Pair, make_pair


def started(pair: Pair, at: Seconds = 4.5, prompt: int = 64, output: int = 20, **changes: object) -> Sequence:
    """One sequence on the source, which is to move at an instant."""
    sequence = make_sequence(prompt, output)
    pair.source.add(sequence)
    pair.clock.call_at(at, lambda: pair.migrate(sequence, **changes))
    return sequence


def the_migration(pair: Pair) -> MigrationRecord:
    (record,) = [record for record in pair.records if isinstance(record, MigrationRecord)]
    return record


def test_the_pause_of_a_live_migration_is_as_long_as_its_last_stage() -> None:
    # At 4.5 s, 67 tokens are computed: 4 blocks are complete, and copied by 5.5 s. The step in flight ends at 6 s; the
    # last block takes until 6.25 s, and the target's first step until 7.25 s.
    pair = make_pair(blocks_per_second=4.0)
    sequence = started(pair)
    pair.clock.run()
    assert sequence.token_times == [1, 2, 3, 4, 5, 6, *(7.25 + i for i in range(14))]
    record = the_migration(pair)
    assert (record.outcome, record.method, record.stages, record.num_blocks) == ("migrated", "live", 2, 5)
    assert (record.started_at, record.first_stage, record.downtime, record.ended_at) == (4.5, 1.0, 0.25, 6.25)
    (pause,) = [record for record in pair.records if isinstance(record, PauseRecord)]
    assert (pause.paused_at, pause.resumed_at, pause.num_bytes, pause.reason) == (6, 6.25, 5 * BLOCK, "migration")
    assert (sequence.instance, sequence.num_migrations, sequence.num_preemptions) == (pair.target, 1, 0)
    assert (pair.source.idle_since, pair.source.last_busy_at) == (6.25, 6.25)
    assert len(pair.ended) == 1
    pair.assert_blocks_are_conserved()


@pytest.mark.parametrize(
    ("max_stages", "last_stage_blocks", "stages", "downtime"),
    [
        (64, 1, 3, 4.0),  # 4 blocks until 20.5, with 83 tokens computed one more until 24.5, then the growing one
        (2, 1, 2, 8.0),  # 4 blocks until 20.5, then the two that are left
        (64, 2, 2, 8.0),
    ],
)
def test_stages_repeat_until_little_is_left_or_may_be_no_more(
    max_stages: int, last_stage_blocks: int, stages: int, downtime: Seconds
) -> None:
    pair = make_pair(blocks_per_second=0.25)
    sequence = started(pair, output=60, max_stages=max_stages, last_stage_blocks=last_stage_blocks)
    pair.clock.run()
    record = the_migration(pair)
    assert (record.stages, record.num_blocks, record.downtime) == (stages, 6, downtime)
    assert [len(blocks) for blocks in pair.wire.copied] == ([4, 1, 1] if stages == 3 else [4, 2])
    assert len(sequence.token_times) == 60


def test_a_sequence_whose_prompt_is_being_computed_leaves_when_it_is() -> None:
    pair = make_pair(blocks_per_second=4.0)
    sequence = started(pair, at=0.5)
    pair.clock.run()
    assert (the_migration(pair).stages, the_migration(pair).downtime) == (1, 1.0)
    assert sequence.token_times[:3] == [1, 3, 4]


def test_every_block_is_copied_once_and_in_order() -> None:
    pair = make_pair(blocks_per_second=0.25)
    sequence = started(pair, output=60)
    tables: list[list[int]] = []
    pair.clock.call_at(24.6, lambda: tables.append(list(sequence.block_table)))
    pair.clock.run()
    assert [block for blocks in pair.wire.copied for block in blocks] == tables[0]


def test_a_blocking_copy_pauses_for_all_blocks() -> None:
    # The step in flight ends at 5 s with 68 tokens computed, which are 5 blocks.
    pair = make_pair(blocks_per_second=4.0)
    sequence = started(pair, method=Method.BLOCKING)
    pair.clock.run()
    record = the_migration(pair)
    assert (record.stages, record.downtime, record.first_stage, record.num_blocks) == (1, 1.25, 1.25, 5)
    assert sequence.token_times[4:7] == [5, 7.25, 8.25]


def test_recomputation_pauses_for_a_prefill() -> None:
    pair = make_pair()
    sequence = started(pair, method=Method.RECOMPUTE)
    pair.clock.run()
    record = the_migration(pair)
    assert (record.stages, record.num_blocks, record.downtime) == (0, 0, 1.0)
    assert sequence.token_times == list(range(1, 21))
    assert (sequence.instance, sequence.num_preemptions) == (pair.target, 0)
    assert (69, 1) in pair.source.executor.steps  # type: ignore[attr-defined]


def test_a_sequence_that_is_recomputed_goes_before_those_that_wait() -> None:
    pair = make_pair(num_blocks=(64, 8))
    running, waiting = make_sequence(80, 30, 1), make_sequence(64, 4, 2)
    pair.target.add(running)
    pair.clock.call_at(0.1, pair.target.add, waiting)
    sequence = started(pair, method=Method.RECOMPUTE, output=6)
    pair.clock.run()
    assert sequence.token_times[5] < waiting.token_times[0]


def test_a_sequence_takes_its_place_by_arrival() -> None:
    pair = make_pair()
    others = [make_sequence(16, 30, index) for index in (1, 2)]
    others[0].arrived_at, others[1].arrived_at = -1.0, 1.0
    for other in others:
        pair.target.add(other)
    sequence = started(pair)
    seen: list[list[Sequence]] = []
    pair.clock.call_at(8.0, lambda: seen.append(list(pair.target.running)))
    pair.clock.run()
    assert seen == [[others[0], sequence, others[1]]]


def test_without_space_at_the_beginning_nothing_happens() -> None:
    pair = make_pair(num_blocks=(64, 8))
    sequence = started(pair, keep_free=5)
    pair.clock.run()
    record = the_migration(pair)
    assert (record.outcome, record.stages, record.downtime) == ("no space", 0, 0.0)
    assert sequence.token_times == list(range(1, 21))
    assert sequence.instance is pair.source


@pytest.mark.parametrize("method", list(Method))
@pytest.mark.parametrize("num_blocks", [4, 8])
def test_nothing_goes_where_it_could_never_end(num_blocks: int, method: Method) -> None:
    # 64 + 80 tokens need 9 blocks in the end; at 4.5 s they have 5, for which there are 8.
    pair = make_pair(num_blocks=(64, num_blocks))
    sequence = started(pair, output=80, method=method)
    pair.clock.run()
    assert pair.outcomes == ["no space"]
    assert (sequence.instance, len(sequence.token_times)) == (pair.source, 80)
    assert (pair.source.move, pair.target.move) == (None, None)


def test_without_space_in_the_last_stage_the_sequence_goes_on_where_it_was() -> None:
    # The target's other sequence grows into its fifth and last block while four are reserved. The source's other
    # sequence, alone in the batch from 6 s on, makes the one that was to leave lose a step.
    pair = make_pair(num_blocks=(64, 9))
    pair.target.add(make_sequence(64, 30, 1))
    mate = make_sequence(16, 30, 2)
    pair.source.add(mate)
    sequence = started(pair)
    pair.clock.call_at(9.5, lambda: order.extend(pair.source.running))
    order: list[Sequence] = []
    pair.clock.run()
    assert order == [mate, sequence]
    record = the_migration(pair)
    assert (record.outcome, record.stages, record.num_blocks) == ("no space in the last stage", 1, 4)
    assert sequence.token_times[4:8] == [5, 6, 8, 9]
    assert (sequence.instance, sequence.num_migrations) == (pair.source, 0)
    assert len(sequence.token_times) == 20
    assert not any(isinstance(record, PauseRecord) for record in pair.records)
    pair.assert_blocks_are_conserved()


def test_a_sequence_that_finishes_meanwhile_leaves_nothing_behind() -> None:
    pair = make_pair(blocks_per_second=1.0)
    sequence = started(pair, output=6)
    pair.clock.run()
    assert (the_migration(pair).outcome, sequence.state, sequence.instance) == (
        "finished",
        State.FINISHED,
        pair.source,
    )
    pair.assert_blocks_are_conserved()


def test_a_sequence_that_finishes_with_the_step_it_was_to_leave_after_is_finished() -> None:
    pair = make_pair()
    started(pair, output=6)  # its last token is that of 6 s
    pair.clock.run()
    assert pair.outcomes == ["finished"]
    pair.assert_blocks_are_conserved()


def test_one_whose_client_leaves_while_its_last_step_there_is_computed_is_aborted() -> None:
    pair = make_pair()
    sequence = started(pair, method=Method.BLOCKING)

    def leave() -> None:
        sequence.state = State.ABORTED

    pair.clock.call_at(4.75, leave)
    pair.clock.run(until=5.5)
    assert pair.outcomes == ["aborted"]


def test_a_sequence_that_was_preempted_meanwhile_stays_even_if_it_runs_again() -> None:
    # 10 blocks for two sequences of 72 tokens: at 9 s both want a sixth. The other one ends at 12 s.
    pair = make_pair(blocks_per_second=0.25, num_blocks=(10, 64))
    pair.source.add(make_sequence(72, 12, 1))
    sequence = started(pair, prompt=72)
    pair.clock.run()
    assert (the_migration(pair).outcome, the_migration(pair).ended_at) == ("preempted", 20.5)
    assert (sequence.num_preemptions, sequence.instance, len(sequence.token_times)) == (1, pair.source, 20)
    pair.assert_blocks_are_conserved()


IN_FIRST_STAGE, BEFORE_LAST_STEP_ENDS, IN_LAST_STAGE = 5.0, 5.75, 6.125


@pytest.mark.parametrize("at", [4.5, IN_FIRST_STAGE, BEFORE_LAST_STEP_ENDS, IN_LAST_STAGE])
@pytest.mark.parametrize("gone", ["aborted", "source lost", "target lost", "run ended"])
def test_whatever_goes_meanwhile_takes_nothing_with_it(at: Seconds, gone: str) -> None:
    pair = make_pair()
    sequence = started(pair)
    lost: list[Sequence] = []

    def strike() -> None:
        if gone == "aborted":
            pair.migrations.take_back(sequence)
            pair.source.take_back(sequence)
        elif gone == "run ended":
            pair.migrations.close()
        else:
            instance = pair.source if gone == "source lost" else pair.target
            pair.migrations.lose(instance)
            lost.extend(instance.lose())
        pair.assert_blocks_are_conserved()

    pair.clock.call_at(at, strike)
    pair.clock.run()
    assert pair.outcomes == [gone]
    assert pair.ended == []  # who stopped it knows
    assert (pair.source.move, pair.target.move) == (None, None)
    assert lost == ([sequence] if gone == "source lost" else [])
    assert len(sequence.token_times) == (20 if gone in ("target lost", "run ended") else len(sequence.token_times))
    assert [s.state for s in pair.finished] == ([State.FINISHED] if gone in ("target lost", "run ended") else [])
    assert the_migration(pair).downtime == (0.125 if at == IN_LAST_STAGE else 0.0)
    pair.assert_blocks_are_conserved()


def test_a_lost_target_loses_a_sequence_that_it_was_to_recompute() -> None:
    pair = make_pair()
    sequence = started(pair, method=Method.RECOMPUTE)
    lost: list[Sequence] = []

    def strike() -> None:
        pair.migrations.lose(pair.target)
        lost.extend(pair.target.lose())

    pair.clock.call_at(5.5, strike)
    pair.clock.run()
    assert (lost, pair.outcomes) == ([sequence], ["target lost"])
    pair.assert_blocks_are_conserved()


def test_an_instance_is_in_one_migration_at_most() -> None:
    pair = make_pair(num_blocks=(64, 64, 64))
    started(pair)
    other = make_sequence(16, 30, 1)
    pair.target.add(other)
    refused: list[str] = []

    def again() -> None:
        for source, target in ((pair.target, pair.instances[2]), (pair.instances[2], pair.source)):
            with pytest.raises(RuntimeError, match="can be in no migration"):
                pair.migrate(other, source=source, target=target)
            refused.append("yes")

    pair.clock.call_at(5.0, again)
    pair.clock.run()
    assert (refused, pair.outcomes, pair.instances[2].move) == (["yes", "yes"], ["migrated"], None)


def test_a_sequence_alone_beside_a_reservation_gives_its_blocks_up_for_a_while() -> None:
    # Six blocks of the target's ten are reserved when its own sequence wants a fifth at 16 s.
    pair = make_pair(blocks_per_second=0.25, num_blocks=(64, 10))
    other = make_sequence(49, 30, 1)
    pair.target.add(other)
    sequence = started(pair, prompt=96, output=40)
    pair.clock.run()
    assert (other.num_preemptions, len(other.token_times), len(sequence.token_times)) == (1, 30, 40)
    pair.assert_blocks_are_conserved()


@given(seed=st.integers(0, 100_000))
@settings(max_examples=60, deadline=None)
def test_storms_of_migrations_lose_nothing(seed: int) -> None:
    draws = Random(f"{seed}/storm")
    pair = make_pair(draws.choice([0.3, 2.0, 9.0]), (12, 14, 20))
    sequences = [make_sequence(draws.randint(1, 90), draws.randint(1, 60), index) for index in range(12)]
    for sequence in sequences:
        pair.clock.call_at(draws.uniform(0, 60), pair.instances[draws.randrange(3)].add, sequence)
    for _ in range(80):
        pair.clock.call_at(draws.uniform(0, 150), move_one, pair, draws.random(), draws)
    while pair.clock._heap:
        step(pair.clock)
        pair.assert_blocks_are_conserved()
    assert [len(sequence.token_times) for sequence in sequences] == [s.request.num_output_tokens for s in sequences]
    assert len(pair.finished) == 12
    migrated = pair.outcomes.count("migrated")
    assert migrated == sum(sequence.num_migrations for sequence in sequences)
    assert all(instance.move is None and instance.idle_since is not None for instance in pair.instances)
    assert sum(len(instance.waiting) + len(instance.running) for instance in pair.instances) == 0


def move_one(pair: Pair, share: float, draws: Random) -> None:
    """Some running sequence to some other instance, if both are free for it."""
    source, target = draws.sample(pair.instances, 2)
    if source.running and source.move is None and target.move is None:
        sequence = source.running[int(share * len(source.running))]
        method = draws.choice(list(Method))
        pair.migrate(sequence, source=source, target=target, method=method, max_stages=draws.choice([2, 64]))


def step(clock: SimClock) -> None:
    """Serve what is booked for the next instant."""
    clock.run(until=clock._heap[0][0])
