"""Deployed models and machines of a point: copies, servers that take after others, caches, gaps that are not kept."""

from pathlib import Path
from typing import Any

import pytest

from aebench.catalog import Catalog
from aebench.deployed_models import names_in_short, tables_by_model
from aebench.execute import setup, without
from aebench.host_cache import cache_bytes, largest_cache
from serving.cost.models import MODELS
from serving.records import Record
from serving.testbed import build_inventory
from serving.units import GB, Gbps, GiB
from tests.aebench.checkout import Checkout
from tests.aebench.end_to_end import make_toy
from tests.aebench.fake_execute import make_request, make_stage

TABLES: dict[str, Any] = {
    "opt-2.7b": {"size_gb": 7.0},
    "llama2-7b": {"size_gb": 13.0, "copies": 2},
    "chat": {"size_gb": 13.0, "architecture": "llama2-7b", "copies": 1},
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A copy that nobody spoils."""
    return make_toy(tmp_path_factory.mktemp("toy"))


def spec(checkout: Checkout, system: str = "hydraserve", *settings: str) -> dict[str, Any]:
    """The resolved spec of a point of the toy experiment."""
    experiment = Catalog(checkout.root).experiment("hydraserve/toy", settings=settings)
    return experiment.resolve({"system": system, "cv": 8})


def test_copies_are_numbered_in_the_order_of_the_tables() -> None:
    found = tables_by_model(TABLES)
    assert list(found) == ["opt-2.7b", "llama2-7b/0", "llama2-7b/1", "chat/0"]
    assert [table.get("architecture") for table in found.values()] == [None, "llama2-7b", "llama2-7b", "llama2-7b"]
    assert names_in_short(TABLES) == ["opt-2.7b", "llama2-7b/0..1", "chat/0..0"]


def test_a_point_deploys_every_copy_and_its_spec_says_so_in_short(checkout: Checkout) -> None:
    resolved = spec(checkout)
    assert list(resolved["deployments"]) == ["llama2-7b-chatbot", "llama2-7b-code"]
    deployed = setup(resolved, seed=0).deployments
    assert [each.model for each in deployed] == [
        *("llama2-7b-chatbot/0", "llama2-7b-chatbot/1"),
        *("llama2-7b-code/0", "llama2-7b-code/1"),
    ]
    assert all(each.spec is MODELS["llama2-7b"] for each in deployed)
    assert [each.tpot_slo for each in deployed] == [0.2, 0.2, 0.084, 0.084]


def test_one_copy_can_be_asked_for_by_its_name(checkout: Checkout) -> None:
    assert spec(checkout, "hydraserve", "model=llama2-7b-code/1")["model"] == "llama2-7b-code/1"
    refused = checkout.refusal(checkout.run("attained", "--set", "model=llama2-7b-code/2", "--dry-run"))
    assert refused.endswith(
        "model: unknown model 'llama2-7b-code/2'. Did you mean llama2-7b-code/0..1 or llama2-7b-chatbot/0..1? "
        "Known: llama2-7b-chatbot/0..1, llama2-7b-code/0..1"
    )


def test_what_a_spec_did_not_say_before_is_in_none_that_leaves_it_out() -> None:
    resolved = Catalog().experiment("hydraserve/hello").points([0])[0].spec
    assert not {"cache_gb", "assignment"} & {*resolved}
    assert set(resolved["measure"]) == {"labels", "drop_largest"}
    assert not {"copies", "application"} & {*resolved["deployments"]["llama2-7b"]}
    assert all("like" not in server for server in resolved["servers"].values())


def test_a_server_takes_after_another_with_the_calibrated_values_and_its_share_of_the_nic(checkout: Checkout) -> None:
    servers = Catalog(checkout.root).experiment("hydraserve/toy").testbeds.server
    wide, narrow = servers["a10x4"], servers["a10x1"]
    assert (wide.num_gpus, wide.dram_gb, wide.nic_gbps, wide.gpu_memory_gb) == (4, 752, 64, 22)
    assert wide.startup == narrow.startup
    assert wide.pcie_gb_s == narrow.pcie_gb_s
    assert wide.fetch_gb_s == pytest.approx(4 * narrow.fetch_gb_s)
    assert wide.sources["dram_gb"] == "same"
    assert wide.sources["gpu"].startswith("as a10x1: Alibaba")
    assert wide.sources["fetch_gb_s"] == "as a10x1 times the ratio of the NICs: calibrated"


def test_recalibrating_a_server_recalibrates_those_that_take_after_it(tmp_path: Path) -> None:
    checkout = make_toy(tmp_path)
    path = checkout.path("calibration.toml")
    path.write_text(path.read_text().replace("value = 1.955", "value = 1.5").replace("value = 3.111", "value = 3.5"))
    wide = Catalog(checkout.root).experiment("hydraserve/toy").testbeds.server["a10x4"]
    assert (wide.fetch_gb_s, wide.startup.libraries) == (6.0, 3.5)


def test_testbed_ii_is_24_gpus_whose_nics_the_stores_feed(checkout: Checkout) -> None:
    inventory = build_inventory(setup(spec(checkout), seed=0).testbed)
    assert sum(len(server.gpus) for server in inventory.servers) == 24
    share = dict.fromkeys(inventory.stores, 0.0)
    for server in inventory.servers:
        for store in server.stores:
            share[store] += server.nic_rate / len(server.stores)
    assert set(share.values()) == {32 * Gbps}


@pytest.mark.parametrize(
    ("said", "capacities"),
    [
        ({"cache_gib": 2.0}, (2 * GiB, 2 * GiB)),
        ({"cache_gib": 0.0, "cache_gb": 3.0}, (3 * GB, 3 * GB)),
        ({"cache_gib": 0.0, "cache_gb": {"wide": 5.0}}, (5 * GB, 0.0)),
        ({"cache_gib": 0.0, "cache_gb": {"wide": 5.0, "narrow": 7.0}}, (5 * GB, 7 * GB)),
    ],
)
def test_a_cache_is_in_gib_or_in_gb_by_server(said: dict[str, Any], capacities: tuple[float, float]) -> None:
    servers = {"wide": {"gpu": "a10"}, "narrow": {"gpu": "v100"}}
    point = {**said, "servers": servers, "gpu": None}
    assert (cache_bytes(point, "wide"), cache_bytes(point, "narrow")) == capacities
    assert largest_cache(point) == max(capacities)
    assert largest_cache({**point, "gpu": "a10"}) == capacities[0]


def test_the_caches_of_a_point_are_those_of_its_servers(checkout: Checkout) -> None:
    testbed = setup(spec(checkout), seed=0).testbed
    assert [(kind.name, kind.cache) for kind, _ in testbed.servers] == [("a10x4", 567e9), ("v100x4", 182e9)]


def test_token_gaps_are_dropped_and_nothing_else() -> None:
    written: list[Record] = []
    write = without({"token_gaps": ()}, written.append)
    write(make_request(3))
    write(make_stage())
    assert written == [make_request(3, token_gaps=()), make_stage()]
