"""Slices in whole GB, best fit within a server, and the leftover rule."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.policies.placement import FreeMemory, slice_size
from serving.units import GB
from tests.build import V100, make_cluster, make_testbed


@pytest.mark.parametrize(
    ("size_gb", "num_stages", "slice_gb"),
    [
        # 13B: 25 + 5 = 30; low-memory workers 15, 10 and ceil(7.5) = 8 (sheet, section 5.1)
        (25, 1, 30),
        (25, 2, 15),
        (25, 3, 10),
        (25, 4, 8),
        # 7B: 18; 9, 6 and ceil(4.5) = 5
        (13, 1, 18),
        (13, 2, 9),
        (13, 3, 6),
        (13, 4, 5),
        (12.3, 1, 18),
    ],
)
def test_slices_are_the_model_and_its_kv_over_the_stages_in_whole_gigabytes(
    size_gb: float, num_stages: int, slice_gb: int
) -> None:
    assert slice_size(size_gb * GB, 5 * GB, num_stages) == slice_gb * GB


def test_the_gpu_with_the_least_room_that_fits_is_taken() -> None:
    cluster = make_cluster(testbed=make_testbed(1, V100))
    server = cluster.servers[0]
    for gpu, used in zip(server.gpus, (0, 10, 20, 5), strict=True):
        gpu.memory.claim("tenant", used * GB)
    free = FreeMemory.of(cluster)  # 32, 22, 12, 27
    assert free.take(server, 15 * GB).gpu is server.gpus[1]
    assert free.take(server, 15 * GB).gpu is server.gpus[3]


@pytest.mark.parametrize(("used", "taken"), [(0, 18), (7, 18), (8, 24), (13, 19), (14, 18)])
def test_a_rest_of_up_to_six_gigabytes_is_taken_as_well(used: int, taken: int) -> None:
    # 18 of 32 GB leave 14, of 25 leave 7: they stay. Of 24 they leave 6, of 19 they leave 1: all is taken.
    cluster = make_cluster(testbed=make_testbed(1, V100))
    server = cluster.servers[0]
    for gpu in server.gpus[1:]:
        gpu.memory.claim("tenant", 32 * GB)
    server.gpus[0].memory.claim("tenant", used * GB)
    assert FreeMemory.of(cluster).take(server, 18 * GB, leftover=6 * GB).memory == taken * GB


def test_a_7b_model_takes_a_whole_a10() -> None:
    cluster = make_cluster()
    # 22 - 18 = 4 GB would be left (sheet, section 5.1)
    assert FreeMemory.of(cluster).take(cluster.servers[0], 18 * GB, leftover=6 * GB).memory == 22 * GB


@given(st.lists(st.integers(1, 32), min_size=1, max_size=20), st.integers(0, 6))
@settings(max_examples=60)
def test_what_is_taken_fits_and_the_cluster_is_not_touched(sizes: list[int], leftover: int) -> None:
    cluster = make_cluster(testbed=make_testbed(1, V100))
    server = cluster.servers[0]
    free = FreeMemory.of(cluster)
    for size in sizes:
        if not free.fits(server, size * GB):
            assert all(free.free[gpu] < size * GB for gpu in server.gpus)
            continue
        placement = free.take(server, size * GB, leftover * GB)
        assert size * GB <= placement.memory <= (size + leftover) * GB
        assert free.free[placement.gpu] == 0 or free.free[placement.gpu] > leftover * GB
    assert min(free.free.values()) >= 0
    assert all(gpu.memory.used == 0 for gpu in server.gpus)
