"""Host memory of a server: buffers of weights on their way, in the region set aside for weights or beside it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.core.hardware import CacheEntry, HostCache, OverCommit, Server
from serving.testbed import build_inventory
from serving.units import GB, Bytes, GiB
from tests.build import A10, make_testbed, with_cache


def make_server(region: float = 20.0) -> Server:
    """A server with 188 GB of host memory; a region of so many GiB of them is set aside, if any."""
    return build_inventory(make_testbed(1, with_cache(A10, region) if region else A10)).servers[0]


def cache_of(server: Server) -> HostCache:
    assert server.cache is not None
    return server.cache


def fill(cache: HostCache, model: str, size: Bytes) -> CacheEntry:
    """A complete entry that nobody reads."""
    entry = cache.open(model, size)
    entry.complete = True
    cache.close(entry)
    return entry


def test_a_buffer_is_in_the_region_and_gone_when_it_is_released() -> None:
    server = make_server()
    server.claim_buffer("weights", 13 * GB)
    assert (cache_of(server).used, server.host_memory.used) == (13 * GB, 0)
    assert not cache_of(server).holds("weights")
    server.release_buffer("weights")
    assert (cache_of(server).used, server.host_memory.used) == (0, 0)


def test_without_a_region_a_buffer_is_in_host_memory() -> None:
    server = make_server(0.0)
    assert server.cache is None
    server.claim_buffer("weights", 13 * GB)
    assert server.host_memory.used == 13 * GB
    server.release_buffer("weights")
    assert server.host_memory.used == 0


def test_a_buffer_that_the_region_has_no_room_for_is_in_host_memory() -> None:
    # 20 GiB are 21.47 GB: a buffer of 13 GB leaves 8.47 GB
    server = make_server()
    for owner, size in (("first", 13 * GB), ("second", 9 * GB), ("third", 8 * GB)):
        server.claim_buffer(owner, size)
    assert (cache_of(server).used, server.host_memory.used) == (21 * GB, 9 * GB)
    for owner in ("second", "first", "third"):
        server.release_buffer(owner)
    assert (cache_of(server).used, server.host_memory.used) == (0, 0)


def test_a_buffer_takes_the_place_of_the_models_that_nobody_used_for_longest() -> None:
    # 20 GiB hold a, b and c of 6 GB; a is used again. 9 GB more need 5.53 GB: b goes, and is enough.
    server = make_server()
    cache = cache_of(server)
    for model in ("a", "b", "c", "a"):
        fill(cache, model, 6 * GB)
    server.claim_buffer("weights", 9 * GB)
    assert [model for model in "abc" if cache.holds(model)] == ["a", "c"]
    assert server.host_memory.used == 0
    server.claim_buffer("more", 12 * GB)  # c and a go too: 9 and 12 GB are all there is
    assert [model for model in "abc" if cache.has(model)] == []
    assert cache.used == 21 * GB


def test_a_buffer_never_takes_the_place_of_a_model_that_is_read() -> None:
    server = make_server()
    cache = cache_of(server)
    reading = cache.open("a", 12 * GB)
    reading.complete = True
    fill(cache, "b", 6 * GB)
    server.claim_buffer("weights", 10 * GB)  # 9.47 GB could be had at most, without a
    assert (cache.holds("a"), cache.holds("b")) == (True, True)
    assert server.host_memory.used == 10 * GB
    cache.close(reading)
    server.claim_buffer("more", 10 * GB)
    assert (cache.holds("a"), cache.holds("b")) == (False, True)


def test_a_model_that_is_fetched_into_the_cache_does_not_take_a_buffers_place() -> None:
    server = make_server()
    cache = cache_of(server)
    server.claim_buffer("weights", 13 * GB)
    assert not cache.can_open("a", 9 * GB)
    with pytest.raises(OverCommit, match="no room for 9000000000 bytes of a"):
        cache.open("a", 9 * GB)
    cache.open("a", 8 * GB)


def test_a_buffer_that_fits_nowhere_raises_and_one_name_has_one_buffer() -> None:
    server = make_server()
    free = server.host_memory.free
    server.claim_buffer("weights", 13 * GB)
    with pytest.raises(OverCommit, match="weights holds memory already"):
        server.claim_buffer("weights", 1 * GB)
    with pytest.raises(OverCommit, match="bytes asked"):
        server.claim_buffer("huge", free + 1)
    assert server.host_memory.used == 0
    assert free + 20 * GiB == pytest.approx(188 * GB, abs=20 * GiB)
    with pytest.raises(OverCommit, match="'nobody' holds nothing here"):
        server.release_buffer("nobody")


steps = st.lists(st.tuples(st.sampled_from(["claim", "release", "read", "close"]), st.integers(0, 5)), max_size=50)


@given(steps)
@settings(max_examples=150)
def test_bytes_in_host_memory_add_up_whoever_comes_and_goes(taken: list[tuple[str, int]]) -> None:
    server = make_server()
    cache = cache_of(server)
    buffers: dict[str, Bytes] = {}
    reading: list[CacheEntry] = []
    for step, index in taken:
        size = (index + 1) * 2.5 * GB
        owner = f"buffer {index}"
        if step == "claim" and owner not in buffers:
            server.claim_buffer(owner, size)
            buffers[owner] = size
        elif step == "release" and owner in buffers:
            server.release_buffer(owner)
            del buffers[owner]
        elif step == "read" and cache.can_open(f"model {index}", size):
            entry = cache.open(f"model {index}", size)
            entry.complete = True
            reading.append(entry)
        elif step == "close" and reading:
            cache.close(reading.pop(0))
        in_region = sum(size for owner, size in buffers.items() if cache.has(owner))
        assert server.host_memory.used == sum(buffers.values()) - in_region
        assert in_region <= cache.used <= cache.capacity
        assert all(cache.holds(entry.model) for entry in reading)
