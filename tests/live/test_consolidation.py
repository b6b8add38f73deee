"""Consolidation on real processes: the same tokens as without it, pauses that are measured, memory that comes back."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from tempfile import gettempdir
from time import monotonic, sleep
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the live extra: make test-live")

from serving.core.hardware import Server  # noqa: E402
from serving.core.stages import Loader  # noqa: E402
from serving.core.worker import Worker  # noqa: E402
from serving.cost.memory import POD_OVERHEAD  # noqa: E402
from serving.live.arrival import Arrival  # noqa: E402
from serving.live.engine_stats import Totals  # noqa: E402
from serving.live.setup import LiveRun  # noqa: E402
from serving.live.transport import LiveTransport  # noqa: E402
from serving.policies.bandwidth import BackgroundNetwork  # noqa: E402
from serving.records import DecisionRecord, PauseRecord, RequestRecord  # noqa: E402
from serving.units import GB, MB, Bytes  # noqa: E402
from tests.live.consolidating import (  # noqa: E402
    MODEL,
    NUM_OUTPUT,
    PROMPTS,
    Watched,
    consolidating,
    grouped,
    kill,
    lively_model,
    pid_of,
    watch,
)
from tests.live.served import left_over  # noqa: E402
from tests.live.stages import InOneProcess, a_step  # noqa: E402
from tests.live.test_processes import alive, wait_until_gone  # noqa: E402

WHOLE = 4 * GB
"""Slice of a worker for the whole model."""
NUM_BLOCKS = 154_582
"""KV blocks that it has room for: (0.95 x 4 GB - 969,984 B of weights) / (16 tokens x 2 x 32 x 4 B x 6 layers)."""


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No process, region or socket file outlives a run."""
    yield
    assert left_over() == []


@pytest.fixture(scope="module")
def undisturbed() -> list[list[int]]:
    """The greedy answer to each prompt, of the whole model in this process, one after the other."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = InOneProcess(lively_model())
    alone.runner.allocate(32, 16)
    found = []
    for prompt in PROMPTS:
        output = alone.step(a_step(prompt, 0, range(32))).ids.tolist()
        while len(output) < NUM_OUTPUT:
            output += alone.step(a_step(output[-1:], len(prompt) + len(output) - 1, range(32))).ids.tolist()
        found.append(output)
    torch.set_num_threads(num_threads)
    assert all(len(set(output)) > 8 for output in found)  # one that says the same for ever would show little
    return found


@pytest.mark.parametrize(("stages", "full", "migrate"), [(2, 1, False), (4, 1, True), (3, 2, True)], ids=str)
def test_requests_are_answered_as_if_nothing_had_happened(
    stages: int, full: int, migrate: bool, undisturbed: list[list[int]]
) -> None:
    setup = consolidating(grouped(stages, full, migrate=migrate), stages)
    seen = watch(setup, look=partial(check_memory, full=full))
    assert seen.outputs == undisturbed
    assert 1 < seen.most_in_flight <= stages
    first, *others = seen.blocks
    assert first < NUM_BLOCKS or stages == 3
    assert others == [NUM_BLOCKS] * full
    (whole,) = seen.stages("consolidation")
    assert whole.ended_at - whole.started_at > 0
    assert len(seen.stages("background load")) == {(2, 1): 1, (4, 1): 1, (3, 2): 3}[stages, full]
    totals = Totals.of([MODEL], None)
    for record in seen.records:
        totals.write(record)
    assert (totals.models[MODEL].cold_starts, totals.models[MODEL].consolidations) == (1, 1)
    pauses = seen.pauses()
    assert bool(pauses) == migrate
    assert [s.num_migrations for s in seen.sequences].count(1) == len(pauses)
    moved_layers = 6 - len(setup.deployments[0].spec.split(stages)[0])
    for pause, record in pauses:
        check_pause(pause, record, moved_layers)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(("stages", "full"), [(2, 1), (4, 1), (3, 2)], ids=str)
def test_a_gpu_gives_the_same_tokens(stages: int, full: int, undisturbed: list[list[int]]) -> None:
    setup = consolidating(grouped(stages, full), stages, device="cuda")
    seen = watch(setup, look=partial(check_memory, full=full))
    assert seen.outputs == undisturbed
    for pause, record in seen.pauses():
        print(f"paused for {1e3 * (pause.resumed_at - pause.paused_at):.1f} ms, {pause.num_bytes:,.0f} B")
        check_pause(pause, record, 6 - len(setup.deployments[0].spec.split(stages)[0]))


def check_memory(run: LiveRun, seen: Watched, full: int) -> None:
    """What the pipeline's other workers had is free again, and their processes and all regions are gone."""
    cluster = run.control.cluster
    assert [len(instance.workers) for instance in cluster.instances] == [1] * full
    kept = [pid_of(run, instance.workers[0]) for instance in cluster.instances]
    assert sorted(kept) == sorted(seen.pids[:full])
    assert all(map(alive, kept))
    wait_until_gone(seen.pids[full:])
    assert sum(gpu.memory.used for server in cluster.servers for gpu in server.gpus) == full * WHOLE
    assert sum(server.host_memory.used for server in cluster.servers) == full * (WHOLE + POD_OVERHEAD)
    folders = Path("/dev/shm"), Path(gettempdir())  # regions; sockets between stages, and where those that live take KV
    inlets = {run.fleet.kv_path(link) for link in run.fleet._links.values()}
    until(lambda: {path for folder in folders for path in folder.glob(f"aebench-{os.getpid()}.*")} == inlets)
    for instance in cluster.instances:
        assert instance.pool is not None
        assert instance.pool.num_free == instance.pool.num_blocks
    for gone in seen.workers():
        assert gone.ended_at is not None


def until(holds: Callable[[], bool]) -> None:
    """Wait for what other processes are about to do."""
    give_up = monotonic() + 10
    while not holds():
        assert monotonic() < give_up
        sleep(0.01)


def check_pause(pause: PauseRecord, record: RequestRecord, moved_layers: int) -> None:
    """It lies between two tokens of its request, and begins at the first of them if a step was under way."""
    assert record.first_token_at is not None
    times = list(accumulate([record.first_token_at, *record.token_gaps]))
    (gap,) = [
        (before, after)
        for before, after in pairwise(times)
        if before <= pause.paused_at + 1e-9 and pause.resumed_at <= after + 1e-9
    ]
    assert 0 < pause.resumed_at - pause.paused_at < gap[1] - gap[0]
    num_tokens = record.num_prompt_tokens + times.index(gap[0])
    num_blocks = -(-num_tokens // 16)
    assert pause.num_bytes == num_blocks * moved_layers * 16 * 2 * 32 * 4


class Strikes:
    """Kills processes, one after the other, each as soon as a consolidation has come so far."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *phases: str) -> None:
        self.due = list(phases)
        self.run: LiveRun | None = None
        self._struck: list[int] = []
        self._fetch, self._load, self._move = LiveTransport.fetch, LiveTransport.load, LiveTransport.move_kv
        self._take_alone = BackgroundNetwork.take_alone
        monkeypatch.setattr(LiveTransport, "fetch", lambda *args: self.fetch(*args))
        monkeypatch.setattr(LiveTransport, "load", lambda *args: self.load(*args))
        monkeypatch.setattr(LiveTransport, "move_kv", lambda *args: self.move(*args))
        monkeypatch.setattr(BackgroundNetwork, "take_alone", lambda *args: self.take_alone(*args))

    def strike(self, phase: str, pid: int) -> None:
        """Once."""
        if self.due[:1] == [phase] and pid not in self._struck:
            self.due.pop(0)
            self._struck.append(pid)
            kill(pid)

    def fetch(self, transport: LiveTransport, worker: Worker) -> Arrival:
        """For whom it is fetched, as soon as some of it has arrived."""
        assert self.run is not None
        instance = self.run.fleet.instance_of(worker)
        arrival = self._fetch(transport, worker)
        if instance is not None and worker not in instance.workers:
            pid = pid_of(self.run, worker)
            arrival.reached(1).wait(lambda _: self.strike("fetch", pid))
        return arrival

    def load(self, transport: LiveTransport, worker: Worker, size: Bytes, loader: Loader) -> Arrival:
        """Whose rest is loaded."""
        if loader is Loader.BACKGROUND and self.run is not None:
            self.strike("load", pid_of(self.run, worker))
        return self._load(transport, worker, size, loader)

    def take_alone(self, network: BackgroundNetwork, servers: tuple[Server, ...]) -> bool:
        """The last of the pipeline, while it waits."""
        if self.due[:1] == ["waiting"] and self.run is not None:
            group = self.run.control.cluster.instances[0]
            self.strike("waiting", pid_of(self.run, group.workers[-1]))
            return False
        return self._take_alone(network, servers)

    def move(self, transport: LiveTransport, source: Worker, *others: Any) -> Arrival:
        """Who gives KV."""
        assert self.run is not None
        self.strike("give", pid_of(self.run, source))
        return self._move(transport, source, *others)


@pytest.mark.faults
@pytest.mark.parametrize("phases", [("fetch", "load"), ("waiting", "give")], ids=str)
def test_processes_that_are_killed_at_any_moment_change_no_answer(
    phases: tuple[str, str], monkeypatch: pytest.MonkeyPatch, undisturbed: list[list[int]]
) -> None:
    strikes = Strikes(monkeypatch, *phases)

    def meet(run: LiveRun) -> None:
        strikes.run = run

    seen = watch(consolidating(grouped(2, 1), 2, rate=3 * MB), look=check_memory_is_free, meet=meet)
    assert strikes.due == []
    assert seen.outputs == undisturbed
    lost = [decision for decision in seen.of(DecisionRecord) if decision.action == "lose"]
    assert len(lost) == 2


def check_memory_is_free(run: LiveRun, seen: Watched) -> None:
    """Accounts hold what lives, and nothing else."""
    del seen
    workers = [worker for instance in run.control.cluster.instances for worker in instance.workers]
    processes = {worker.process: worker.memory for worker in workers}
    assert sum(g.memory.used for s in run.control.cluster.servers for g in s.gpus) == sum(processes.values())
    assert len(run.fleet._links) == len(processes)
