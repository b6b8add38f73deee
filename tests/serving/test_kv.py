"""KV blocks: conserved whatever happens, and misuse raises."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.core.kv import BlockPool, BlockPoolError, Reservation
from tests.build import make_instance, make_sequence

operations = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 120), st.booleans()), max_size=60)


@given(st.integers(1, 20), operations)
@settings(max_examples=100)
def test_blocks_are_conserved_and_held_once_under_random_growth_and_release(
    num_blocks: int, steps: list[tuple[int, int, bool]]
) -> None:
    pool = BlockPool(num_blocks, 16)
    sequences = [make_sequence(request_id=index) for index in range(6)]
    for index, num_tokens, free in steps:
        sequence = sequences[index]
        if free:
            pool.free(sequence)
        elif pool.can_extend(sequence, num_tokens):
            pool.extend(sequence, num_tokens)
            assert sequence.capacity >= num_tokens
        else:
            with pytest.raises(BlockPoolError):
                pool.extend(sequence, num_tokens)
        held = [block for sequence in sequences for block in sequence.block_table]
        assert len(held) == len(dict.fromkeys(held))
        assert len(held) + pool.num_free == num_blocks
        assert all(sequence.capacity == 16 * len(sequence.block_table) for sequence in sequences)
    for sequence in sequences:
        pool.free(sequence)
    assert pool.num_free == num_blocks


@given(st.lists(st.integers(1, 6), min_size=1, max_size=30))
@settings(max_examples=50)
def test_preemption_gives_every_block_back_and_readmission_takes_them_again(choices: list[int]) -> None:
    bench = make_instance(num_blocks=32)
    pool = bench.instance.pool
    assert pool is not None
    bench.instance.waiting.extend(make_sequence(16 * n, request_id=n) for n in range(1, 7))
    for choice in choices:
        if bench.instance.running and choice % 2:
            victim = bench.instance.running[choice % len(bench.instance.running)]
            bench.instance.preempt(victim)
            assert (victim.block_table, victim.num_computed) == ([], 0)
        elif bench.instance.waiting:
            first = bench.instance.waiting[0]
            pool.extend(first, first.num_tokens)
            bench.instance.admit(first)
        # a sequence of n x 16 tokens holds n blocks while it runs
        assert pool.num_free == 32 - sum(s.num_tokens // 16 for s in bench.instance.running)


def test_tokens_round_up_to_whole_blocks() -> None:
    pool = BlockPool(8, 16)
    assert [pool.blocks_for(n) for n in (0, 1, 16, 17, 32, 33)] == [0, 1, 1, 2, 2, 3]


def test_reserve_is_kept_free_by_can_extend() -> None:
    pool = BlockPool(4, 16)
    assert pool.can_extend(make_sequence(), 48, reserve=1)
    assert not pool.can_extend(make_sequence(), 64, reserve=1)


def test_extend_by_fewer_tokens_than_held_keeps_the_blocks() -> None:
    pool, sequence = BlockPool(4, 16), make_sequence()
    pool.extend(sequence, 40)
    pool.extend(sequence, 8)
    assert (len(sequence.block_table), pool.num_free) == (3, 1)


def test_a_pool_without_blocks_left_refuses_with_the_numbers() -> None:
    pool = BlockPool(2, 16)
    with pytest.raises(BlockPoolError, match="sequence 3 needs 3 more blocks, 2 are free"):
        pool.extend(make_sequence(request_id=3), 48)
    assert pool.num_free == 2


def test_giving_back_a_block_twice_raises() -> None:
    pool, sequence = BlockPool(4, 16), make_sequence(request_id=5)
    pool.extend(sequence, 16)
    table = list(sequence.block_table)
    pool.free(sequence)
    sequence.block_table = table
    with pytest.raises(BlockPoolError, match="sequence 5 gives back block 0, which it does not hold"):
        pool.free(sequence)


def test_giving_back_the_block_of_another_sequence_raises() -> None:
    pool, owner, thief = BlockPool(4, 16), make_sequence(), make_sequence()
    pool.extend(owner, 16)
    thief.block_table = list(owner.block_table)
    with pytest.raises(BlockPoolError, match="does not hold"):
        pool.free(thief)


@pytest.mark.parametrize(("num_blocks", "block_size"), [(0, 16), (4, 0), (-1, 16)])
def test_a_pool_needs_blocks_and_a_block_size(num_blocks: int, block_size: int) -> None:
    with pytest.raises(ValueError, match=f"got {num_blocks} and {block_size}"):
        BlockPool(num_blocks, block_size)


def test_reserved_blocks_are_nobody_elses_and_go_to_their_sequence_in_order() -> None:
    pool, elsewhere = BlockPool(8, 16), BlockPool(8, 16)
    sequence, reservation = make_sequence(request_id=3), Reservation(3)
    elsewhere.extend(sequence, 64)
    assert pool.can_reserve(8, keep_free=0)
    assert not pool.can_reserve(8, keep_free=1)
    pool.reserve(reservation, 2)
    pool.reserve(reservation, 2)
    assert (pool.num_free, reservation.blocks) == (4, [0, 1, 2, 3])
    with pytest.raises(BlockPoolError, match="is to get 5 blocks, 4 are free"):
        pool.reserve(reservation, 5)
    with pytest.raises(BlockPoolError, match="holds 4"):
        pool.hand(reservation, sequence)  # which has blocks elsewhere
    elsewhere.free(sequence)
    pool.hand(reservation, sequence)
    assert (sequence.block_table, sequence.capacity, reservation.blocks) == ([0, 1, 2, 3], 64, [])
    pool.free(sequence)
    assert pool.num_free == 8


def test_a_reservation_is_given_back_once_and_to_its_own_pool() -> None:
    pool, other = BlockPool(8, 16), BlockPool(8, 16)
    reservation = Reservation(0)
    pool.reserve(reservation, 3)
    with pytest.raises(BlockPoolError, match="not in this pool"):
        other.release(reservation)
    with pytest.raises(BlockPoolError, match="it is another"):
        pool.hand(reservation, make_sequence(request_id=1))
    pool.release(reservation)
    pool.release(reservation)
    assert (pool.num_free, reservation.blocks) == (8, [])
