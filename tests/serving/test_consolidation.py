"""Consolidation: a pipeline that serves becomes one worker or several, in the background, and loses nothing.

Llama2-7B on A10s: a layer has 404.76672 MB, embedding and head 262.144 MB each. Servers fetch 2 GB/s and copy 8 GB/s.
What the first of two stages lacks is 16 layers and the head, 6.73841152 GB: 3.36920576 s; the head, the last tensor, is
on the GPU 32.768 ms after its last byte. A KV block of 16 layers has 16 x 16384 x 16 B = 4.194304 MB: 2.097152 ms at
2 GB/s.
"""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.core.instance import Phase
from serving.core.request import State
from serving.records import StageRecord
from serving.units import GB, MB, Seconds
from tests.consolidating import Doors, assert_nothing_is_left, make_run

REST: Seconds = 6.73841152 / 2
LAST: Seconds = 0.262144 / 8
BLOCK: Seconds = 4.194304e-3 / 2


def poll_after(start: Seconds, period: Seconds, at: Seconds) -> Seconds:
    """The first poll of a loop, begun at ``start``, that is not before ``at``."""
    polls = (start + n * period for n in range(10_000))
    return next(poll for poll in polls if poll >= at - 1e-9)


def test_a_pipeline_of_two_becomes_its_first_worker_and_kv_follows() -> None:
    run = make_run(network=Doors(rest_at=4.22, alone_at=8.0))
    run.send(0.0, num_output_tokens=400)
    run.go()
    # The start: 6.7384 GB a worker at 2 GB/s, the last tensor 32.768 ms later (rank 0 ends with a layer's).
    (decided_at,) = run.decided("consolidate")
    spans = run.spans()
    assert decided_at == 3.5  # the first tick after the start has ended, at 3.402 s
    fetch_at = poll_after(3.5, 0.1, 4.22)
    assert spans["await network"][:2] == pytest.approx((3.5, fetch_at))
    assert spans["background fetch"] == pytest.approx((fetch_at, fetch_at + REST, 6738.41152 * MB))
    assert spans["background load"] == pytest.approx((fetch_at, fetch_at + REST + LAST, 6738.41152 * MB))
    opened_at = fetch_at + REST + LAST
    alone_at = poll_after(opened_at, 0.05, 8.0)
    assert spans["await exclusive"][:2] == pytest.approx((opened_at, alone_at))
    frozen_at, resumed_at, moved = spans["kv migration"]
    (pause,) = run.pauses
    (sequence,) = run.sequences
    tokens_before = [time for time in sequence.token_times if time <= frozen_at]
    num_blocks = -(-(64 + len(tokens_before) - 1) // 16)
    assert frozen_at == tokens_before[-1]  # the step in flight was let end
    assert alone_at <= frozen_at < alone_at + 0.1
    assert moved == pytest.approx(num_blocks * 4.194304 * MB)
    assert resumed_at == pytest.approx(frozen_at + num_blocks * BLOCK)
    assert (pause.paused_at, pause.resumed_at) == (frozen_at, resumed_at)
    assert (pause.request_id, pause.instance, pause.num_bytes) == (0, 0, moved)
    assert spans["consolidation"][:2] == pytest.approx((3.5, resumed_at))
    assert sequence.num_migrations == 1
    assert sequence.num_preemptions == 0
    # Then it decodes alone on a whole GPU: no hop, a stage instead of two
    gaps = [after - before for before, after in pairwise(sequence.token_times)]
    assert gaps[len(tokens_before)] < gaps[len(tokens_before) - 2]
    assert_nothing_is_left(run)


def test_the_released_worker_ends_at_the_switch_and_the_heir_goes_on() -> None:
    run = make_run()
    run.send(0.0, num_output_tokens=400)
    run.clock.run(9.0)
    (heir,) = run.control.cluster.instances
    (group,) = run.controller.groups
    switched_at = run.spans()["consolidation"][1]
    (released,) = run.workers
    assert (released.rank, released.server, released.memory) == (1, "a10x1-1", 9 * GB)
    assert (released.started_at, released.ended_at) == (0.0, switched_at)
    assert released.ready_at == pytest.approx(3.36920576 + LAST, abs=0.05)
    used = [server.gpus[0].memory.used for server in run.control.cluster.servers]
    assert used == [22 * GB, 0, 0, 0]
    assert run.control.cluster.servers[1].host_memory.used == 0
    assert run.control.cluster.servers[0].host_memory.used == 26 * GB  # the slice and 4 GB; the buffer is gone
    assert (group.phase, heir.instance_id, len(heir.workers), heir.max_sequences) == (Phase.RETIRED, 0, 1, 8)
    assert heir.neighbour is None
    assert heir.workers[0].layers == range(32)
    # Before: as many blocks of 16 layers as the second stage's 9 GB hold, or of 32 layers as the first's 22 GB will:
    # (20.9 - 13.476843) GB / (32 x 262144 B) = 884 against (8.55 - 6.738412) GB / (16 x 262144 B) = 431
    assert heir.pool is not None
    assert heir.pool is group.pool
    assert heir.pool.num_blocks == 884
    run.go()
    records = {record.rank: record for record in run.workers}
    assert len(run.workers) == 2
    assert records[0].ended_at == run.decided("retire")[0]
    assert (records[0].started_at, records[0].memory, records[0].instance) == (0.0, 18 * GB, 0)
    assert records[0].last_busy_at == run.sequences[0].finished_at
    assert_nothing_is_left(run)


def test_a_pipeline_has_few_blocks_until_it_is_one_worker() -> None:
    run = make_run(network=Doors(rest_at=6.0))
    run.send(0.0)
    run.clock.run(5.0)
    (group,) = run.controller.groups
    assert group.pool is not None
    assert group.pool.num_blocks == 431


def test_scaling_up_two_workers_become_two_instances() -> None:
    # 4 stages of 8 layers, the first two with memory for all. The first lacks 24 layers and the head; the second
    # has its 8 in the middle and fetches 8 layers with the embedding before, 16 with the head after.
    run = make_run(num_stages=4, num_full=2)
    for _ in range(3):
        run.send(0.0, num_output_tokens=500)
    run.clock.run(14.0)
    spans, other = run.spans(0), run.spans(1)
    (decided_at,) = run.decided("consolidate")
    first_end = decided_at + (24 * 404.76672 + 262.144) / 2000
    assert spans["background fetch"][1] == pytest.approx(first_end)
    parts = [r for r in run.records if isinstance(r, StageRecord) and r.rank == 1 and r.stage == "background fetch"]
    sizes = [(8 * 404.76672 + 262.144) * MB, (16 * 404.76672 + 262.144) * MB]
    assert [part.num_bytes for part in parts] == pytest.approx(sizes)
    assert parts[1].started_at == other["background load"][0]
    first, second = run.control.cluster.instances
    assert [(one.instance_id, len(one.workers), one.workers[0].rank) for one in (first, second)] == [
        (0, 1, 0),
        (1, 1, 0),
    ]
    assert first.workers[0].server.name == "a10x1-0"
    assert second.workers[0].server.name == "a10x1-1"
    assert second.pool is not None
    assert second.pool is not first.pool
    assert second.pool.num_blocks == 884
    assert run.control.num_launched == 2
    switched_at = spans["consolidation"][1]
    ended = {record.rank: record for record in run.workers}
    assert {rank: record.ended_at for rank, record in ended.items()} == {1: switched_at, 2: switched_at, 3: switched_at}
    assert [server.gpus[0].memory.used for server in run.control.cluster.servers] == [22 * GB, 22 * GB, 0, 0]
    run.go()
    children = [record for record in run.workers if record.instance == 1]
    (child,) = children
    assert (child.started_at, child.ready_at, child.rank, child.memory) == (switched_at, switched_at, 0, 18 * GB)
    assert child.ended_at is not None
    assert_nothing_is_left(run)


def test_new_sequences_run_on_the_heir_while_the_old_ones_finish_in_the_pipeline() -> None:
    run = make_run(migrate=False)
    run.send(0.0, num_output_tokens=300)
    run.send(9.0, num_output_tokens=50)
    run.clock.run(9.5)
    (group,) = run.controller.groups
    heir = next(one for one in run.control.cluster.instances if one is not group)
    old, new = run.sequences
    assert (old.instance, new.instance) == (group, heir)
    assert (group.spare, heir.spare) == (0, 7)
    run.go()
    assert old.finished_at is not None
    assert new.finished_at is not None
    assert new.finished_at < old.finished_at
    assert run.pauses == []
    assert (old.num_migrations, run.controller.network.num_asked) == (0, 0)
    # the switch: at the first look at the group after its last sequence has left
    opened_at = run.spans()["background load"][1]
    assert run.spans()["consolidation"][1] == pytest.approx(poll_after(opened_at, 0.05, old.finished_at))
    assert_nothing_is_left(run)


def test_an_heir_is_idle_since_the_pipelines_last_sequence_left() -> None:
    run = make_run(migrate=False, grace=20.0)
    run.send(0.0, num_output_tokens=600)
    run.go()
    (old,) = run.sequences
    assert old.finished_at is not None
    assert run.spans()["background load"][1] + 10.0 < old.finished_at
    (retired_at,) = run.decided("retire")
    assert 20.0 < retired_at - old.finished_at <= 20.25
    assert_nothing_is_left(run)


def test_a_pipeline_that_never_gets_the_network_alone_waits_for_its_last_token() -> None:
    run = make_run(network=Doors(alone_at=1e9))
    run.send(0.0, num_output_tokens=200)
    run.go()
    assert run.controller.network.num_asked > 10
    assert "kv migration" not in run.spans()
    assert run.pauses == []
    assert run.spans()["await exclusive"][1] == run.spans()["consolidation"][1]
    assert_nothing_is_left(run)


def test_who_waits_when_the_heir_opens_goes_there() -> None:
    # 8 blocks of 16 tokens: two prompts of 48 hold 6, and the third, which needs 3, waits; the second is preempted when
    # the first needs a fifth block, at token 65 of both, before the heir opens at about 6.9 s
    run = make_run(num_blocks=8, network=Doors(alone_at=1e9))
    for _ in range(3):
        run.send(0.0, num_prompt_tokens=48, num_output_tokens=70)
    seen = []
    for at in (3.6, 6.8, 7.0):
        run.clock.run(at)
        (group,) = run.controller.groups
        members = [one for one in (group, group.neighbour) if one is not None]
        seen.append([[s.request.request_id for s in (*one.running, *one.waiting)] for one in members])
        assert all(s.instance is one for one in members for s in (*one.running, *one.waiting))
    assert seen == [[[0, 1, 2]], [[0, 1, 2]], [[0], [1, 2]]]
    run.go()
    assert run.sequences[0].num_preemptions == 0 < run.sequences[1].num_preemptions
    assert_nothing_is_left(run)


def test_whom_the_pipeline_preempts_goes_on_at_the_heir() -> None:
    # two sequences that have 4 of 8 blocks each from token 49 on: at token 65, after the heir has opened, one yields
    run = make_run(num_blocks=8, network=Doors(alone_at=1e9))
    for _ in range(2):
        run.send(0.0, num_prompt_tokens=1, num_output_tokens=120)
    run.clock.run(6.95)
    group, heir = run.control.cluster.instances
    first, second = run.sequences
    assert (group.closed, group.running, heir.num_sequences, second.num_preemptions) == (True, [first, second], 0, 0)
    run.clock.run(8.5)
    assert (group.running, len(group.waiting), second.num_preemptions) == ([first], 0, 1)
    assert (second.instance, list(heir.waiting)) == (heir, [second])
    run.go()
    assert_nothing_is_left(run)


@pytest.mark.parametrize("lost_at", [3.45, 3.6, 5.0, 6.95, 7.5, 8.5, 8.56, 8.6, 12.0])
@pytest.mark.parametrize("by_heir", [False, True])
def test_a_pipeline_lost_at_any_time_gives_all_back_and_its_sequences_run_elsewhere(
    lost_at: Seconds, by_heir: bool
) -> None:
    run = make_run(network=Doors(alone_at=8.5))
    run.send(0.0, num_output_tokens=400)
    run.send(7.2, num_prompt_tokens=100, num_output_tokens=400)
    held: list[list[int]] = []

    def strike() -> None:
        members = list(run.control.cluster.instances)
        run.control.lose(members[-1 if by_heir else 0], "struck")
        assert all(member.phase is Phase.RETIRED for member in members)
        assert run.control._consolidations.under_way == {}
        assert (run.controller.network.fetching, run.controller.network.taken) == ([], [])
        held.append([s.request.request_id for s in run.control.cluster.held["llama2-7b"]])

    run.clock.call_at(lost_at, strike)
    run.go()
    assert held == [[0, 1] if lost_at > 7.2 else [0]]
    assert [sequence.num_losses for sequence in run.sequences] == [1, int(lost_at > 7.2)]
    assert run.decided("lose") == [lost_at]
    assert len(run.decided("launch")) == 2
    assert_nothing_is_left(run)


def test_a_pipeline_lost_while_kv_moves_stops_the_transfer() -> None:
    # 40 blocks of 600 and more tokens take over 80 ms
    run = make_run(network=Doors(alone_at=8.0))
    run.send(0.0, num_prompt_tokens=600, num_output_tokens=400)
    run.clock.run(8.0)
    links = run.control.backend.transport.links  # type: ignore[attr-defined]
    while not links._users:
        run.clock.run(run.clock.now + 0.01)
    run.control.lose(run.control.cluster.instances[0], "struck")
    assert (links._users, run.controller.network.taken) == ({}, [])
    run.go()
    assert [pause.instance for pause in run.pauses] == [1]  # the next pipeline's
    assert_nothing_is_left(run)


def test_an_idle_pipeline_retires_while_it_converts() -> None:
    run = make_run(network=Doors(rest_at=15.0), grace=10.0)
    run.send(0.0, num_output_tokens=10)
    run.go()
    (retired_at,) = run.decided("retire")
    (sequence,) = run.sequences
    assert sequence.finished_at is not None
    assert 10.0 < retired_at - sequence.finished_at <= 10.25
    assert "background fetch" not in run.spans()
    run = make_run(network=Doors(rest_at=12.0), grace=10.0)
    run.send(0.0, num_output_tokens=10)
    run.go()
    (retired_at,) = run.decided("retire")
    fetch_at = run.spans()["await network"][1]  # it had begun, and was cancelled
    assert fetch_at == pytest.approx(12.0, abs=0.1001)
    assert "background fetch" not in run.spans()
    carried = run.control.backend.transport.links.carried  # type: ignore[attr-defined]
    fetched = carried[run.control.cluster.servers[0].downlink] - (16 * 404.76672 + 262.144) * MB
    assert fetched == pytest.approx((retired_at - fetch_at) * 2 * GB)
    assert_nothing_is_left(run)


@pytest.mark.parametrize("after", [0.0, 0.01, 0.02, 0.04, 0.08])
def test_a_client_that_leaves_while_kv_moves_takes_nothing_along(after: Seconds) -> None:
    run = make_run(network=Doors(alone_at=8.0))
    for _ in range(3):
        run.send(0.0, num_prompt_tokens=600, num_output_tokens=400)
    run.clock.call_at(8.01 + after, lambda: run.control.abort(run.sequences[1]))
    run.go()
    assert [sequence.state for sequence in run.sequences] == [State.FINISHED, State.ABORTED, State.FINISHED]
    assert {0, 2} <= {pause.request_id for pause in run.pauses} <= {0, 1, 2}
    assert_nothing_is_left(run)


def test_an_heir_whose_only_sequence_leaves_while_it_waits_for_blocks_is_idle() -> None:
    # the pipeline's sequence has 6 of 8 blocks and grows; the heir's, of 64 tokens, needs 4 and is taken back
    run = make_run(num_blocks=8, network=Doors(alone_at=1e9))
    run.send(0.0, num_prompt_tokens=20, num_output_tokens=100)
    run.send(7.0, num_prompt_tokens=64, num_output_tokens=10)
    run.clock.run(7.1)
    group, heir = run.control.cluster.instances
    assert ([len(group.running), len(heir.running), len(heir.waiting)]) == [1, 0, 1]
    run.control.abort(run.sequences[1])
    assert (heir.idle_since, heir.num_sequences) == (7.1, 0)
    run.go()
    assert_nothing_is_left(run)


def test_a_pipeline_without_sequences_switches_at_once_and_asks_for_no_network() -> None:
    run = make_run(network=Doors(alone_at=1e9))
    run.send(0.0, num_output_tokens=2)
    run.go()
    spans = run.spans()
    assert run.controller.network.num_asked == 0
    assert spans["consolidation"][1] == spans["background load"][1] == spans["await exclusive"][1]
    assert_nothing_is_left(run)


def test_only_a_ready_pipeline_with_a_worker_for_all_consolidates_and_only_once() -> None:
    run = make_run(network=Doors(rest_at=20.0))
    run.send(0.0, num_output_tokens=400)
    run.clock.run(3.3)
    (group,) = run.control.cluster.instances
    with pytest.raises(RuntimeError, match="instance 0 cannot consolidate: it is starting"):
        run.control._carry_out("test", [run.controller._consolidate(group)])
    group.num_becoming = 0
    run.clock.run(5.0)
    with pytest.raises(RuntimeError, match="instance 0 cannot consolidate: it is ready, or does"):
        run.control._carry_out("test", [run.controller._consolidate(group)])


arrivals = st.lists(st.tuples(st.floats(0, 14), st.integers(1, 500), st.integers(1, 200)), min_size=1, max_size=12)


@given(
    workload=arrivals,
    shape=st.sampled_from([(2, 1), (3, 1), (4, 1), (4, 2), (3, 2), (4, 4)]),
    migrate=st.booleans(),
    num_blocks=st.sampled_from([None, 60, 90]),
    doors=st.tuples(st.floats(0, 10), st.floats(0, 20)),
    strikes=st.lists(st.tuples(st.floats(2, 15), st.booleans(), st.integers(0, 11)), max_size=2),
)
@settings(max_examples=150, deadline=None)
def test_whatever_happens_meanwhile_all_requests_end_and_nothing_is_left(
    workload: list[tuple[float, int, int]],
    shape: tuple[int, int],
    migrate: bool,
    num_blocks: int | None,
    doors: tuple[float, float],
    strikes: list[tuple[float, bool, int]],
) -> None:
    network = Doors(rest_at=doors[0], alone_at=doors[1])
    run = make_run(num_blocks, num_stages=shape[0], num_full=shape[1], migrate=migrate, network=network, grace=5.0)
    for at, num_prompt_tokens, num_output_tokens in workload:
        run.send(at, num_prompt_tokens, num_output_tokens)

    def strike(is_loss: bool, index: int) -> None:
        if is_loss and run.control.cluster.instances:
            run.control.lose(run.control.cluster.instances[index % len(run.control.cluster.instances)], "struck")
        elif run.sequences and not is_loss:
            run.control.abort(run.sequences[index % len(run.sequences)])

    for at, is_loss, index in strikes:
        run.clock.call_at(at, strike, is_loss, index)
    run.go(400.0)
    assert_nothing_is_left(run)
    if not strikes:
        assert all(sequence.state is State.FINISHED for sequence in run.sequences)
