"""Inventories: machines as the spec says, all memory free, stores taken in turn."""

from dataclasses import replace
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.core.hardware import Link, StorageServer
from serving.testbed import Assignment, Testbed, assign_stores, build_inventory
from serving.units import GB, Gbps, GiB
from tests.build import A10, STARTUP, V100, make_testbed, with_cache


def test_servers_have_the_memory_and_links_of_their_kind() -> None:
    server = build_inventory(make_testbed(1, V100)).servers[0]
    assert (server.name, server.kind, server.exclusive) == ("v100x4-0", "v100x4", False)
    assert [gpu.name for gpu in server.gpus] == [f"v100x4-0/gpu{index}" for index in range(4)]
    assert [gpu.memory.free for gpu in server.gpus] == [32 * GB] * 4
    assert (server.nic_rate, server.downlink.capacity, server.gpus[0].pcie.capacity) == (16 * Gbps, 2 * GB, 8 * GB)


def test_every_gpu_has_memory_and_pcie_of_its_own() -> None:
    server = build_inventory(make_testbed(1, V100)).servers[0]
    server.gpus[0].memory.claim("worker", 10 * GB)
    assert [gpu.memory.used for gpu in server.gpus] == [10 * GB, 0, 0, 0]
    assert len({id(gpu.pcie) for gpu in server.gpus}) == 4


def test_the_weight_cache_is_taken_out_of_host_memory() -> None:
    plain = build_inventory(make_testbed(1)).servers[0]
    cached = build_inventory(make_testbed(1, with_cache(A10, 16.0))).servers[0]
    assert plain.cache is None
    assert cached.cache is not None
    assert cached.cache.capacity == 16 * GiB
    assert plain.host_memory.capacity - cached.host_memory.capacity == 16 * GiB


def test_servers_of_all_kinds_come_in_the_order_of_the_spec_with_the_isolation_of_the_testbed() -> None:
    testbed = Testbed(servers=((A10, 2), (V100, 1)), num_stores=1, store_nic_rate=64 * Gbps, exclusive=True)
    inventory = build_inventory(testbed)
    assert [server.name for server in inventory.servers] == ["a10x1-0", "a10x1-1", "v100x4-0"]
    assert all(server.exclusive for server in inventory.servers)
    assert testbed.startup == {"a10x1": STARTUP, "v100x4": STARTUP}


def test_testbed_i_gives_each_store_as_many_servers_as_its_nic_feeds() -> None:
    # 4 A10 and 4 V100 servers of 16 Gbps each, 2 stores of 32: 128 Gbps wanted, 64 given, 4 servers a store
    testbed = Testbed(servers=((A10, 4), (V100, 4)), num_stores=2, store_nic_rate=32 * Gbps, exclusive=False)
    names = [server.store.name for server in build_inventory(testbed).servers]
    assert names == ["store0", "store1"] * 4


def test_a_wide_server_takes_more_of_its_store_than_a_narrow_one() -> None:
    wide = replace(A10, name="wide", nic_rate=64 * Gbps)
    testbed = Testbed(servers=((wide, 1), (A10, 3)), num_stores=2, store_nic_rate=96 * Gbps, exclusive=False)
    # 96 - 64 = 32 left at store0, so the three narrow ones (96 -> 80 -> 64 -> 48) all go to store1
    assert [s.store.name for s in build_inventory(testbed).servers] == ["store0", "store1", "store1", "store1"]


def test_testbed_ii_fits_every_nic_into_the_stores_and_halves_the_wide_ones() -> None:
    # 2 servers of 64 Gbps as halves of 32 on stores 0..3, 4 of 16 Gbps in pairs on stores 4 and 5: 192 wanted and given
    wide = replace(A10, name="a10x4", nic_rate=64 * Gbps)
    testbed = Testbed(
        servers=((wide, 2), (V100, 4)),
        num_stores=6,
        store_nic_rate=32 * Gbps,
        exclusive=False,
        assignment="best_fit",
    )
    found = [[store.name for store in server.stores] for server in build_inventory(testbed).servers]
    wide_ones = [["store0", "store1"], ["store2", "store3"]]
    assert found == [*wide_ones, ["store4"], ["store4"], ["store5"], ["store5"]]


@pytest.mark.parametrize(
    ("assignment", "names"),
    [
        ("best_fit", ["store0", "store0", "store1", "store0"]),  # left: 16 32, 6 32, 6 22, 0 22
        ("largest", ["store0", "store1", "store1", "store0"]),  # left: 16 32, 16 22, 16 12, 10 12
    ],
)
def test_the_assignment_rule_decides_between_stores_that_have_enough(assignment: Assignment, names: list[str]) -> None:
    stores = [StorageServer(f"store{i}", 32.0, Link(f"store{i}", 32.0)) for i in range(2)]
    left = {store: store.nic_rate for store in stores}
    found = [assign_stores(rate, left, assignment)[0].name for rate in (16.0, 10.0, 10.0, 6.0)]
    assert found == names


def test_where_no_store_has_enough_left_the_one_with_the_most_is_taken() -> None:
    stores = [StorageServer(f"store{i}", 32.0, Link(f"store{i}", 32.0)) for i in range(2)]
    left = {stores[0]: 4.0, stores[1]: 8.0}
    assert assign_stores(16.0, left, "best_fit") == (stores[1],)
    assert left[stores[1]] == -8.0


@given(st.lists(st.integers(1, 64), max_size=30), st.integers(1, 6))
def test_stores_differ_by_no_more_than_one_server(rates: list[int], num_stores: int) -> None:
    stores = [StorageServer(f"s{i}", 100.0, Link(f"s{i}", 100.0)) for i in range(num_stores)]
    left = {store: store.nic_rate for store in stores}
    for rate in rates:
        assign_stores(float(rate), left, "largest")
    assert sum(100.0 - rest for rest in left.values()) == sum(rates)
    assert max(left.values()) - min(left.values()) <= max(rates, default=0)


def test_links_without_a_limit_take_one_store_and_leave_it_without_a_limit() -> None:
    inventory = build_inventory(
        Testbed(servers=((replace(A10, nic_rate=inf), 3),), num_stores=2, store_nic_rate=inf, exclusive=False)
    )
    assert [len(server.stores) for server in inventory.servers] == [1, 1, 1]
