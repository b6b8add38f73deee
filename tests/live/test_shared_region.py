import os
import subprocess
import sys

import pytest

from serving.live.shared_region import HEADER, RegionError, SharedRegion, region_name, regions_folder, sweep, unlink
from tests.live.fetching import fresh_run_id, regions

READER = """
import sys
from serving.live.shared_region import SharedRegion
with SharedRegion.open(sys.argv[1]) as region:
    print(region.size, region.received, bytes(region.data[:3]).decode())
"""


def test_another_process_sees_bytes_and_count() -> None:
    run_id = fresh_run_id()
    with SharedRegion.create(region_name(run_id, 1), 10_000) as region:
        region.reserve(0, 10_000)
        region.data[:3] = b"abc"
        region.received = 3
        shown = subprocess.run([sys.executable, "-c", READER, region.name], capture_output=True, text=True, check=True)
        region.unlink()
    assert shown.stdout.split() == ["10000", "3", "abc"]
    assert regions(run_id) == []


def test_an_unlinked_region_keeps_its_bytes_where_it_is_mapped() -> None:
    region = SharedRegion.create(region_name(fresh_run_id(), 1), 100)
    other = SharedRegion.open(region.name)
    region.unlink()
    region.data[0] = 7
    assert other.data[0] == 7
    other.close()
    region.close()
    region.close()


def test_reserved_and_mapped_pages_stay_zero_and_take_memory() -> None:
    size = 3 * 1024 * 1024
    region = SharedRegion.create(region_name(fresh_run_id(), 1), size)
    region.unlink()
    region.data[5] = 9
    region.reserve(0, size)
    region.map_pages(0, size)
    assert bytes(region.data) == bytes(5) + b"\x09" + bytes(size - 6)
    region.close()


def test_a_view_outlives_the_region_it_was_taken_of() -> None:
    region = SharedRegion.create(region_name(fresh_run_id(), 1), 100)
    region.unlink()
    view = region.data[10:20]
    region.close()
    view[0] = 5
    assert view[0] == 5


def test_a_region_that_does_not_fit_is_refused_with_what_there_is() -> None:
    stat = os.statvfs(regions_folder())
    with pytest.raises(RegionError, match=r"needs [\d,]+ bytes in .*, which has [\d,]+ free"):
        SharedRegion.create(region_name(fresh_run_id(), 1), stat.f_blocks * stat.f_frsize * 2)


def test_names_are_taken_once_and_missing_ones_are_said() -> None:
    run_id = fresh_run_id()
    region = SharedRegion.create(region_name(run_id, 1), 1)
    with pytest.raises(RegionError, match="exists already"):
        SharedRegion.create(region.name, 1)
    region.unlink()
    region.close()
    with pytest.raises(RegionError, match="it was freed, or its process died"):
        SharedRegion.open(region.name)


@pytest.mark.parametrize("name", ["../etc/passwd", "aebench-", "aebench-../x", "other-1-2", "aebench-a/b", ""])
def test_a_name_cannot_leave_the_folder(name: str) -> None:
    for use in (SharedRegion.open, unlink):
        with pytest.raises(RegionError, match="is no name of a region"):
            use(name)


def test_a_file_that_is_too_short_is_refused() -> None:
    path = regions_folder() / region_name(fresh_run_id(), 1)
    path.write_bytes(bytes(HEADER - 1))
    try:
        with pytest.raises(RegionError, match="shorter than its header"):
            SharedRegion.open(path.name)
    finally:
        path.unlink()


def test_a_sweep_takes_the_regions_of_a_run_and_its_parts_only() -> None:
    run_id = fresh_run_id()
    names = [region_name(run_id, 1), region_name(run_id, 2), region_name(f"{run_id}.3", 4)]
    others = [region_name(f"{run_id}0", 1)]
    for name in (*names, *others):
        SharedRegion.create(name, 1).close()
    assert sorted(sweep(run_id)) == sorted(names)
    assert regions(run_id) == others
    assert sweep(f"{run_id}0") == others
