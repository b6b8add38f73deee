"""Accounts of memory: conserved, and over-commitment raises."""

from math import nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.core.hardware import CacheEntry, HostCache, Link, Memory, OverCommit


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-5, 60), st.booleans()), max_size=60))
@settings(max_examples=100)
def test_memory_claims_add_up_and_whatever_does_not_fit_raises(steps: list[tuple[int, int, bool]]) -> None:
    memory = Memory("gpu0", 100.0)
    claims: dict[int, float] = {}
    for owner, size, release in steps:
        if release:
            if owner in claims:
                assert memory.release(owner) == claims.pop(owner)
            else:
                with pytest.raises(OverCommit, match="holds nothing here"):
                    memory.release(owner)
        elif owner in claims or not 0 <= size <= 100 - sum(claims.values()):
            with pytest.raises(OverCommit):
                memory.claim(owner, size)
        else:
            memory.claim(owner, size)
            claims[owner] = size
        assert memory.used == sum(claims.values())
        assert memory.free == 100 - memory.used


def test_over_commitment_says_what_was_asked_and_what_is_free() -> None:
    memory = Memory("gpu0", 10.0)
    memory.claim("a", 4.0)
    with pytest.raises(OverCommit, match="gpu0: 7 bytes asked, 6 of 10 free"):
        memory.claim("b", 7.0)


def test_a_claim_that_is_no_number_raises() -> None:
    with pytest.raises(OverCommit):
        Memory("gpu0", 10.0).claim("a", nan)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), max_size=60))
@settings(max_examples=100)
def test_a_cache_never_holds_more_than_its_capacity_and_keeps_what_is_read(steps: list[tuple[str, bool]]) -> None:
    sizes = {model: 10.0 * (index + 1) for index, model in enumerate("abcdef")}
    cache = HostCache("dram", 75.0)
    reading: list[CacheEntry] = []
    for model, close in steps:
        if close and reading:
            cache.close(reading.pop(0))
            continue
        in_use = {entry.model: entry.size for entry in reading}
        if model in in_use or sum(in_use.values()) + sizes[model] <= 75:
            entry = cache.open(model, sizes[model])
            entry.complete = True
            reading.append(entry)
        else:
            with pytest.raises(OverCommit, match="no room"):
                cache.open(model, sizes[model])
        assert cache.used <= 75
        assert all(cache.holds(entry.model) for entry in reading)


def test_the_least_recently_used_model_leaves_the_cache_first() -> None:
    cache = HostCache("dram", 30.0)
    for model in ("a", "b", "c", "a"):  # a is used again, so b is the oldest
        entry = cache.open(model, 10.0)
        entry.complete = True
        cache.close(entry)
    cache.open("d", 10.0)
    assert [model for model in "abcd" if cache.holds(model)] == ["a", "c"]  # d is not complete


def test_an_entry_is_held_only_once_it_is_complete() -> None:
    cache = HostCache("dram", 30.0)
    entry = cache.open("a", 10.0)
    assert not cache.holds("a")
    entry.complete = True
    assert cache.holds("a")
    assert cache.open("a", 10.0) is entry


def test_an_entry_closed_more_often_than_opened_raises() -> None:
    cache = HostCache("dram", 30.0)
    entry = cache.open("a", 10.0)
    cache.close(entry)
    with pytest.raises(OverCommit, match="a closed more often than opened"):
        cache.close(entry)


def test_a_refused_model_leaves_the_cache_as_it_was() -> None:
    cache = HostCache("dram", 30.0)
    for model in ("a", "b"):
        entry = cache.open(model, 10.0)
        entry.complete = True
        cache.close(entry)
    with pytest.raises(OverCommit, match="no room for 31 bytes of big, capacity 30"):
        cache.open("big", 31.0)
    assert cache.holds("a")
    assert cache.holds("b")


@pytest.mark.parametrize("capacity", [0.0, -1.0, nan])
def test_a_link_needs_a_capacity(capacity: float) -> None:
    with pytest.raises(ValueError, match="nic needs a capacity above 0"):
        Link("nic", capacity)


def test_a_model_is_forgotten_though_it_is_complete_and_being_read() -> None:
    cache = HostCache("server0.cache", 30.0)
    entry = cache.open("a", 10.0)
    entry.complete = True
    cache.discard("a")
    assert cache.holds("a")
    cache.forget("a")
    cache.forget("a")
    assert not cache.holds("a")
    assert cache.used == 0
    cache.close(entry)
