"""The controller's book of each NIC: HydraServe's section 3.2 by hand, and its laws."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.policies.bandwidth import Bandwidth, Nic
from serving.units import GB
from tests.build import make_cluster, make_workers


def test_an_idle_nic_offers_all_of_its_rate() -> None:
    assert Nic(2 * GB).available(now=100.0) == 2 * GB


def test_a_nic_is_closed_while_one_more_fetch_would_make_a_running_one_late() -> None:
    nic = Nic(2 * GB)
    nic.claim(0.0, "a", 13 * GB, slo=10.0)
    # alone it runs at 2 GB/s. One more would leave it 1 GB/s:
    assert nic.available(0.0) == 0.0  # 10 s x 1 GB/s < 13 GB
    assert nic.available(2.9) == 0.0  # 7.1 s x 1 GB/s < 13 - 5.8 = 7.2 GB
    assert nic.available(3.0) == 1 * GB  # 7.0 s x 1 GB/s is enough for 13 - 6 = 7 GB


def test_claims_share_the_nic_and_speed_up_when_one_ends() -> None:
    nic = Nic(2 * GB)
    nic.claim(0.0, "a", 13 * GB, slo=100.0)
    nic.claim(3.0, "b", 6 * GB, slo=100.0)
    # from t=3 on 1 GB/s each: b ends at 9, when a has 13 - 6 - 6 = 1 GB left; alone it takes 0.5 s
    assert nic.available(8.9) == pytest.approx(2 / 3 * GB)
    assert nic.available(9.4) == 1 * GB
    assert nic.claims[0].remaining == pytest.approx(0.2 * GB)
    assert nic.available(9.6) == 2 * GB


def test_a_late_fetch_closes_its_nic() -> None:
    nic = Nic(2 * GB)
    nic.claim(0.0, "a", 13 * GB, slo=1.0)
    assert nic.available(5.0) == 0.0  # 4 s past its SLO, 3 GB left
    assert nic.available(6.5) == 2 * GB


def test_release_gives_the_rate_back_and_takes_the_oldest_claim_of_that_owner_only() -> None:
    nic = Nic(2 * GB)
    nic.claim(0.0, "a", 20 * GB, slo=1000.0)
    nic.claim(0.0, "b", 20 * GB, slo=1000.0)
    nic.claim(0.0, "a", 30 * GB, slo=1000.0)
    nic.release(3.0, "a")  # each has had 2 GB; a's first claim of 18 GB goes
    assert [(claim.owner, claim.remaining) for claim in nic.claims] == [("b", 18 * GB), ("a", 28 * GB)]
    assert nic.available(3.0) == pytest.approx(2 / 3 * GB)
    nic.release(3.0, "nobody")
    assert len(nic.claims) == 2


def test_a_release_after_the_believed_end_leaves_a_later_claim_of_the_same_owner_alone() -> None:
    nic = Nic(2 * GB)
    nic.claim(0.0, "a", 2 * GB, slo=1000.0)  # believed to be over at 1
    nic.claim(6.0, "a", 13 * GB, slo=1000.0)
    nic.release(6.5, "a")  # the first start is ready
    assert nic.available(6.5) == pytest.approx(1 * GB)
    nic.release(13.0, "a")
    assert nic.available(13.0) == pytest.approx(2 * GB)


def test_servers_are_ranked_by_rate_with_ties_in_server_order_and_closed_ones_left_out() -> None:
    cluster = make_cluster()
    bandwidth = Bandwidth()
    first, second, third, fourth = cluster.servers
    bandwidth.nic(first).claim(0.0, "slow", 1 * GB, slo=100.0)
    bandwidth.nic(third).claim(0.0, "late", 13 * GB, slo=1.0)
    assert bandwidth.ranked(cluster) == [(second, 2 * GB), (fourth, 2 * GB), (first, 1 * GB)]
    bandwidth.release(0.0, "late")
    assert [server for server, _ in bandwidth.ranked(cluster)] == [second, third, fourth, first]


claims = st.lists(st.tuples(st.floats(0, 5), st.floats(0.1, 20), st.floats(0, 30)), min_size=1, max_size=8)


@given(claims, st.floats(0.01, 40))
@settings(max_examples=80)
def test_bytes_believed_to_be_moved_never_exceed_the_nic_and_fill_it_while_claims_are_left(
    booked: list[tuple[float, float, float]], wait: float
) -> None:
    nic = Nic(2 * GB)
    now = total = 0.0
    for gap, size, slo in booked:
        now += gap
        nic.claim(now, "owner", size * GB, slo)
        total += size * GB
    nic.available(now)
    before = sum(claim.remaining for claim in nic.running)
    offered = nic.available(now + wait)
    after = sum(claim.remaining for claim in nic.running)
    assert 0 <= before <= total
    assert before - after == pytest.approx(min(before, 2 * GB * wait), abs=1e3)
    assert offered in (0.0, 2 * GB / (len(nic.running) + 1))


def test_a_background_fetch_closes_its_server_until_it_has_ended() -> None:
    cluster = make_cluster()
    book = Bandwidth()
    network = book.network(cluster)
    worker = make_workers(cluster)[0]
    assert network.open_for_rest(worker, 6 * GB)
    assert book.nic(worker.server).available(cluster.now) == 0.0
    assert not network.open_for_rest(worker, 6 * GB)  # nor may another one begin
    network.close_rest(worker)
    assert book.nic(worker.server).available(cluster.now) == 2 * GB


def test_kv_moves_only_between_servers_that_fetch_nothing_and_keeps_fetches_away() -> None:
    cluster = make_cluster()
    book = Bandwidth()
    network = book.network(cluster)
    servers = cluster.servers[:2]
    book.nic(servers[1]).claim(0.0, "a", 2 * GB, slo=100.0)
    assert not network.take_alone(servers)
    book.nic(servers[1]).release(0.0, "a")
    assert network.take_alone(servers)
    assert not network.take_alone(servers[:1])
    assert [server for server, _ in book.ranked(cluster)] == list(cluster.servers[2:])
    network.give_back(servers)
    assert len(book.ranked(cluster)) == 4


def test_without_minding_contention_every_server_is_open_at_its_full_rate() -> None:
    cluster = make_cluster()
    book = Bandwidth(minds_contention=False)
    book.nic(cluster.servers[0]).claim(0.0, "a", 200 * GB, slo=1.0)
    assert {rate for _, rate in book.ranked(cluster)} == {2 * GB}
    network = book.network(cluster)
    assert network.take_alone(cluster.servers)
    assert network.open_for_rest(make_workers(cluster)[0], 6 * GB)
