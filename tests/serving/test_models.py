"""Architectures: parameter counts as published, and how layers and bytes split over stages."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.cost.models import MODELS

PUBLISHED = {
    "opt-2.7b": 2.65e9,
    "opt-6.7b": 6.66e9,
    "opt-13b": 12.85e9,
    "llama2-7b": 6.738e9,
    "llama2-13b": 13.016e9,
    "llama3-8b": 8.030e9,
    "falcon-7b": 6.92e9,
    "smollm2-135m": 134.5e6,
    "llama-7b": 6.738e9,
    "llama-30b": 32.529e9,
}


@pytest.mark.parametrize(("slug", "num_parameters"), PUBLISHED.items())
def test_weights_are_two_bytes_for_each_published_parameter(slug: str, num_parameters: float) -> None:
    assert MODELS[slug].weight_bytes / 2 == pytest.approx(num_parameters, rel=0.005)


def test_every_model_has_a_published_count_to_be_checked_against() -> None:
    assert sorted(PUBLISHED) == sorted(MODELS)


@pytest.mark.parametrize(
    ("slug", "num_stages", "counts"),
    [
        # Llama2-7B: embedding and head weigh 262 MB each, a layer 405 MB. Of 3 stages [262, 0, 262] the middle one is
        # lightest, then the last (ties go to the later), then the first; so in turn: 10 each, and 2 more to 1 and 2.
        ("llama2-7b", 3, [10, 11, 11]),
        ("llama2-7b", 4, [8, 8, 8, 8]),
        # Llama3-8B: ends weigh 1051 MB, a layer 436: the middle ones get 3 layers each (1309) before the ends get
        # one (1487), then all take turns: 6 + 4 x 6 = 30 layers, and the ends are lighter for the last two.
        ("llama3-8b", 4, [7, 9, 9, 7]),
        ("llama3-8b", 2, [16, 16]),
        ("opt-13b", 1, [40]),
    ],
)
def test_layers_go_to_the_lightest_stage_in_turn(slug: str, num_stages: int, counts: list[int]) -> None:
    assert [len(layers) for layers in MODELS[slug].split(num_stages)] == counts


@given(st.sampled_from(sorted(MODELS)), st.integers(1, 5))
@settings(max_examples=100)
def test_stages_hold_each_layer_once_and_all_the_bytes(slug: str, num_stages: int) -> None:
    model = MODELS[slug]
    stages = model.split(num_stages)
    assert [layer for layers in stages for layer in layers] == list(range(model.num_layers))
    held = sum(model.stage_bytes(layers) for layers in stages)
    doubled = model.head_bytes if model.tied and num_stages > 1 else 0.0  # a tied head is on both ends of a pipeline
    assert held == pytest.approx(model.weight_bytes + doubled)
    weights = [len(layers) * model.layer_bytes for layers in stages]
    weights[0] += model.embedding_bytes
    weights[-1] += model.head_bytes
    ends = max(model.embedding_bytes, model.head_bytes)
    assert max(weights) - min(weights) <= max(model.layer_bytes, 2 * ends)


@given(st.sampled_from(sorted(MODELS)), st.integers(1, 5))
def test_tensors_of_a_stage_add_up_to_its_bytes(slug: str, num_stages: int) -> None:
    model = MODELS[slug]
    for layers in model.split(num_stages):
        assert sum(model.stage_tensors(layers)) == model.stage_bytes(layers)
        assert min(model.stage_tensors(layers)) > 0


@pytest.mark.parametrize("num_stages", [0, 33])
def test_a_model_cannot_have_more_stages_than_layers_or_none(num_stages: int) -> None:
    with pytest.raises(ValueError, match=f"llama2-7b has 32 layers and cannot make {num_stages} stages"):
        MODELS["llama2-7b"].split(num_stages)


def test_a_split_that_leaves_a_stage_without_a_layer_is_refused() -> None:
    # Falcon's head outweighs two layers: 18 stages would leave its last one with nothing else
    with pytest.raises(ValueError, match="falcon-7b: of 18 stages, stage 0 would have no layer"):
        MODELS["falcon-7b"].split(18)


@pytest.mark.parametrize(
    ("slug", "kv_bytes"),
    [
        ("llama2-7b", 2 * 32 * 128 * 2),  # K and V of 32 heads of 128, fp16
        ("llama3-8b", 2 * 8 * 128 * 2),  # grouped: 8 KV heads
        ("falcon-7b", 2 * 1 * 64 * 2),  # one KV head of 64
    ],
)
def test_kv_bytes_of_a_token_follow_the_number_of_kv_heads(slug: str, kv_bytes: int) -> None:
    assert MODELS[slug].kv_bytes_per_layer == kv_bytes
