"""``aebench serve --system llumnix`` over real processes: it rebalances under load, and no answer differs for it."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import closing
from typing import Any, TypeVar

import pytest

pytest.importorskip("torch", reason="needs the live extra: make test-live")
pytest.importorskip("starlette", reason="needs the live extra: make test-live")
httpx = pytest.importorskip("httpx", reason="needs the live extra: make test-live")

from aebench.service.app import application  # noqa: E402
from aebench.service.deployment import Serving, engine_of  # noqa: E402
from aebench.service.service import Service  # noqa: E402
from serving.live.fleet import WorkerOptions  # noqa: E402
from serving.units import MB  # noqa: E402
from tests.live.served import left_over, tiny_model  # noqa: E402

T = TypeVar("T")
NUM_CLIENTS = 6
PATIENCE = 60.0
"""Seconds, on a machine that does much else."""
UNBALANCED = {
    "dispatch": "first",
    "interval": 0.02,
    "report_period": 0.0,
    "migrate_threshold": 1e9,
    "migrate_in_threshold": 0.0,
}
"""All requests go to one instance, and whoever has more gives to who has less."""


def with_service(use: Callable[[Any], Awaitable[T]], system: str, num_instances: int = 2, **knobs: Any) -> T:
    """What ``use`` returns, given a client of a service whose instances are all ready."""
    told = Serving(
        folder=tiny_model(),
        name="tiny",
        system=system,
        num_instances=num_instances,
        knobs=knobs,
        kv_memory=1 * MB,
        workers=WorkerOptions(),
    )
    engine, model = engine_of(told)

    async def run() -> T:
        service = Service(engine, [model], starts_on_demand=told.starts_on_demand)
        transport = httpx.ASGITransport(application(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=PATIENCE) as client:
            await until_ready(client, num_instances)
            return await use(client)

    with closing(engine):
        engine.start()
        return asyncio.run(run())


async def until_ready(client: Any, num_instances: int) -> None:
    """Wait until ``/health`` counts so many instances."""
    async with asyncio.timeout(PATIENCE):
        while (await client.get("/health")).json().get("instances") != {"ready": num_instances, "starting": 0}:
            await asyncio.sleep(0.05)


async def ask_all(client: Any, max_tokens: int = 120) -> list[str]:
    """The streamed answers to as many greedy prompts of different lengths, all at once."""

    async def ask(number: int) -> str:
        prompt = [(7 * number + place) % 200 + 3 for place in range(10 + 8 * number)]
        body = {"model": "tiny", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
        answer = await client.post("/v1/completions", json={**body, "stream": True})
        assert answer.status_code == 200 and '"finish_reason":"length"' in answer.text, answer.text
        return text_of(answer.text)

    return list(await asyncio.gather(*map(ask, range(NUM_CLIENTS))))


def text_of(stream: str) -> str:
    """The text of a stream, chunk after chunk."""
    chunks = [line.removeprefix("data: ") for line in stream.split("\n\n") if line.startswith("data: {")]
    return "".join(choice["text"] for chunk in chunks for choice in json.loads(chunk)["choices"])


async def counted(client: Any, name: str) -> float:
    """The value of a line of ``/metrics``."""
    lines = (await client.get("/metrics")).text.splitlines()
    return float(next(line.rpartition(" ")[2] for line in lines if line.startswith(f"aebench_{name}")))


@pytest.fixture(scope="module")
def expected() -> list[str]:
    """The answers of one instance that moves nothing."""
    texts = with_service(ask_all, "fixed_instances", num_instances=1)
    assert len(set(texts)) == NUM_CLIENTS and all(texts)
    return texts


def test_requests_that_land_unevenly_are_moved_and_their_streams_are_what_they_would_have_been(
    expected: list[str],
) -> None:
    async def use(client: Any) -> tuple[list[str], float, float]:
        texts = await ask_all(client)
        moved = await counted(client, 'migrations_total{model="tiny",outcome="migrated"}')
        assert await counted(client, "kv_blocks_used") == 0
        return texts, moved, await counted(client, "migration_downtime_seconds_total")

    texts, moved, downtime = with_service(use, "llumnix", **UNBALANCED)
    assert texts == expected
    assert moved >= 3 and 0 < downtime < PATIENCE
    assert left_over() == []


@pytest.mark.parametrize("system", ["infaas++", "round-robin"])
def test_every_system_of_the_family_serves_from_the_instances_that_it_keeps(system: str, expected: list[str]) -> None:
    async def use(client: Any) -> tuple[list[str], float]:
        return await ask_all(client), await counted(client, 'migrations_total{model="tiny",outcome="migrated"}')

    texts, moved = with_service(use, system)
    assert texts == expected
    assert moved == 0  # nothing is short of memory
    assert left_over() == []
