"""Sampling: what a token may depend on, and that the distribution is the asked one."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the live extra: make test-live")

from serving.live.batch import SampledRows  # noqa: E402
from serving.live.sampling import LOOKS, Draws, sample, top_logprobs, uniform  # noqa: E402

LOGITS = torch.tensor([0.0, 2.0, 1.0, -1.0, 0.5])


def draws(n: int, *, temperature: float = 1.0, top_p: float = 1.0, seed: int = 0) -> Draws:
    """One draw at each of n positions."""
    rows = SampledRows(
        temperature=np.full(n, temperature, np.float32),
        top_p=np.full(n, top_p, np.float32),
        seeds=np.full(n, seed, np.int64),
    )
    made = Draws.of(rows, np.arange(n), np.ones(n, bool))
    assert made is not None
    return made


def shares(tokens: "torch.Tensor", vocab: int) -> "torch.Tensor":
    """How often each token was drawn."""
    return torch.bincount(tokens, minlength=vocab) / len(tokens)


def test_greedy_is_the_largest_logit() -> None:
    assert sample(LOGITS.expand(3, 5), None).tolist() == [1, 1, 1]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax_at_the_temperature(temperature: float) -> None:
    tokens = sample(LOGITS.expand(40_000, 5), draws(40_000, temperature=temperature))
    torch.testing.assert_close(shares(tokens, 5), torch.softmax(LOGITS / temperature, 0), atol=0.01, rtol=0)


def test_top_p_draws_from_the_fewest_likeliest_tokens() -> None:
    kept = torch.softmax(LOGITS, 0)
    kept[[0, 3, 4]] = 0  # 0.53 + 0.20 reach 0.7, the first alone does not
    tokens = sample(LOGITS.expand(40_000, 5), draws(40_000, top_p=0.7))
    torch.testing.assert_close(shares(tokens, 5), kept / kept.sum(), atol=0.01, rtol=0)
    assert set(sample(LOGITS.expand(1000, 5), draws(1000, top_p=0.5)).tolist()) == {1}


@pytest.mark.parametrize("vocab", [LOOKS[0] * 2, LOOKS[1], LOOKS[1] * 2])
def test_a_flat_row_is_cut_at_top_p_too(vocab: int) -> None:
    peaked = torch.zeros(vocab)
    peaked[7] = 100
    logits = torch.linspace(0, 1e-3, vocab).repeat(600, 1)
    logits[::2] = peaked
    tokens = sample(logits, draws(600, top_p=0.75))
    assert set(tokens[::2].tolist()) == {7}
    flat = tokens[1::2]
    assert vocab // 4 - 2 <= flat.min() < vocab // 4 + vocab // 20
    assert flat.max() >= vocab - vocab // 20


def test_a_token_is_that_of_its_seed_and_position_whatever_the_batch_is() -> None:
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(1))
    rows = SampledRows(
        temperature=np.array([1, 0, 0.8, 1, 1.2, 1], np.float32),
        top_p=np.array([1, 1, 0.9, 0.5, 1, 1], np.float32),
        seeds=np.array([3, 4, 5, 6, -7, 3], np.int64),
    )
    positions = np.array([10, 11, 12, 13, 14, 15])
    together = sample(logits, Draws.of(rows, positions, np.ones(6, bool)))
    for i in range(6):
        wants = np.arange(6) == i
        assert sample(logits[i : i + 1], Draws.of(rows, positions, wants)).tolist() == [together[i].item()]
    assert together[1] == logits[1].argmax()


def test_uniforms_differ_by_seed_and_by_position_and_never_reach_one() -> None:
    seeds, positions = np.meshgrid(np.arange(-100, 100), np.arange(200))
    values = uniform(seeds.ravel(), positions.ravel())
    assert len(np.unique(values)) == values.size
    assert values.min() >= 0 and values.max() < 1
    assert values.mean() == pytest.approx(0.5, abs=0.005)


def test_logprobs_are_those_of_the_model_before_temperature() -> None:
    logits = torch.stack([LOGITS, LOGITS.flip(0)])
    chosen, ids, values = top_logprobs(logits, torch.tensor([2, 0]), 2)
    expected = torch.log_softmax(logits, -1)
    torch.testing.assert_close(chosen, torch.stack([expected[0, 2], expected[1, 0]]))
    assert ids.tolist() == [[1, 2], [3, 2]]
    torch.testing.assert_close(values, expected.gather(1, ids))
    assert top_logprobs(logits, torch.tensor([2, 0]), 0)[1].shape == (2, 0)
