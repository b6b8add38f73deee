"""The compiled kernels against PyTorch and numbers by hand; one row's result does not depend on the others'."""

import ctypes
import math
import platform
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs the live extra: make test-live")

from serving.live.cpu import build as building  # noqa: E402
from serving.live.cpu.build import build, library_path  # noqa: E402
from serving.live.cpu.kernels import Kernels, Paged, kernels_for  # noqa: E402
from serving.live.rope import Turn, rotate  # noqa: E402

unhurried = settings(deadline=None)


VARIANTS = ["-march=native", "-mno-avx512f", "-mno-avx"] if platform.machine() == "x86_64" else ["-march=native"]


@pytest.fixture(scope="module", params=VARIANTS)
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    """For this machine's processor, and for lesser ones."""
    if reason := build():
        pytest.skip(reason)
    if request.param == VARIANTS[0]:
        found = kernels_for(torch.empty(1))
        assert found is not None
        return found
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(building, "FLAGS", (*building.FLAGS, request.param))
        library_path.cache_clear()
        assert build() is None
        library = ctypes.CDLL(str(library_path()))
    library_path.cache_clear()
    return Kernels(library)


def random(seed: int, *shape: int) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def threads() -> Any:
    """Set back what a test changes."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@unhurried
@given(
    rows=st.one_of(st.integers(1, 40), st.integers(90, 200)),
    inputs=st.one_of(st.integers(1, 40), st.sampled_from([255, 256, 257, 520])),
    outputs=st.one_of(st.integers(1, 100), st.sampled_from([31, 32, 33, 64])),
    bias=st.booleans(),
    onto=st.booleans(),
)
def test_products(kernels: Kernels, rows: int, inputs: int, outputs: int, bias: bool, onto: bool) -> None:
    x, weight = random(1, rows, inputs), random(2, outputs, inputs)
    added = random(3, outputs) if bias else None
    residual = random(4, rows, outputs) if onto else None
    expected = x.double() @ weight.double().t()
    expected += 0 if added is None else added
    expected += 0 if residual is None else residual
    ours = kernels.multiply(x, kernels.pack(weight), added, residual)
    assert residual is None or ours is residual
    torch.testing.assert_close(ours.double(), expected, atol=1e-4, rtol=1e-5)


def test_a_product_by_hand(kernels: Kernels) -> None:
    matrix = kernels.pack(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    onto = torch.tensor([[100.0, 200.0, 300.0]])
    assert kernels.multiply(torch.tensor([[10.0, 1.0]]), matrix, torch.tensor([0.5, 0.0, -1.0])).tolist() == [
        [12.5, 34.0, 55.0]
    ]
    assert kernels.multiply(torch.tensor([[10.0, 1.0]]), matrix, None, onto).tolist() == [[112.0, 234.0, 356.0]]


def test_a_weight_that_is_a_view_of_a_wider_one(kernels: Kernels) -> None:
    wide, x = random(1, 20, 48), random(2, 3, 96)[:, ::2]
    weight = wide.t()[:, 5:15].t()
    torch.testing.assert_close(kernels.multiply(x, kernels.pack(weight), None), x @ weight.t())


@pytest.mark.parametrize("rows", [2, 12, 13, 33, 97, 200])
def test_a_row_is_the_same_to_the_bit_alone_and_among_others(kernels: Kernels, threads: Any, rows: int) -> None:
    x, matrix = random(5, rows, 600), kernels.pack(random(6, 70, 600))
    threads(1)
    together = kernels.multiply(x, matrix, None)
    for row in (0, rows // 2, rows - 1):
        assert torch.equal(kernels.multiply(x[row : row + 1], matrix, None)[0], together[row])
    threads(3)
    assert torch.equal(kernels.multiply(x, matrix, None), together)


@pytest.mark.parametrize("shape", [(1, 5), (3, 64), (40, 768)])
def test_norms(kernels: Kernels, shape: tuple[int, int]) -> None:
    x, weight = random(1, *shape) * 3, random(2, shape[1])
    expected = torch.nn.functional.rms_norm(x, (shape[1],), weight, 1e-5)
    torch.testing.assert_close(kernels.norm(x, weight, 1e-5), expected)
    assert kernels.norm(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 10.0]), 0.0).tolist() == [
        pytest.approx([3 / math.sqrt(12.5), 40 / math.sqrt(12.5)])
    ]


@pytest.mark.parametrize("shape", [(1, 5), (3, 64), (40, 2048)])
def test_gates(kernels: Kernels, shape: tuple[int, int]) -> None:
    rows = random(1, shape[0], 2 * shape[1]) * 10
    gate, up = rows.chunk(2, -1)
    torch.testing.assert_close(kernels.gate(rows), torch.nn.functional.silu(gate) * up)


def test_gates_far_out(kernels: Kernels) -> None:
    gates = torch.tensor([0.0, -1e-30, 1e30, -1e30, 87.5, -87.5, 200.0, -200.0, float("nan")])
    ours = kernels.gate(torch.cat((gates, torch.ones(9)))[None])[0]
    torch.testing.assert_close(ours, torch.nn.functional.silu(gates), equal_nan=True, atol=1e-34, rtol=1e-6)


@pytest.mark.parametrize("rows", [1, 30])
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(4, 4, 64), (4, 2, 8), (3, 1, 6), (8, 8, 128)])
@pytest.mark.parametrize("turns", [True, False])
def test_turning_and_storing(kernels: Kernels, rows: int, heads: int, kv_heads: int, size: int, turns: bool) -> None:
    qkv = random(1, rows, (heads + 2 * kv_heads) * size)
    turn = Turn(random(2, rows, 1, size), random(3, rows, 1, size)) if turns else None
    slots = torch.from_numpy(np.random.default_rng(4).permutation(40)[:rows])
    parts = qkv.view(rows, -1, size).tensor_split([heads, heads + kv_heads], 1)
    query, key = (part.clone() if turn is None else rotate(part, turn) for part in parts[:2])
    pools = torch.full((2, 10, 4, kv_heads, size), 7.0)
    expected = pools.clone().view(2, 40, kv_heads, size)
    expected[0, slots], expected[1, slots] = key, parts[2]
    ours = kernels.rotate_and_store(qkv, heads, turn, slots, (pools[0], pools[1]))
    torch.testing.assert_close(ours, query)
    torch.testing.assert_close(pools.view_as(expected), expected)


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("size", [8, 64, 80, 128])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (5, 1)])
def test_attention(kernels: Kernels, threads: Any, heads: int, kv_heads: int, size: int, num_threads: int) -> None:
    """Contexts from one token to many blocks; what is behind a sequence's last token is NaN. Row by row it is the same
    to the bit."""
    threads(num_threads)
    contexts, block = [1, 4, 5, 300, 17], 4
    query = random(1, len(contexts), 2 * heads, size)[:, :heads]  # as in fused rows: not contiguous
    tables = np.random.default_rng(2).permutation(400)[: 5 * 75].reshape(5, 75).astype(np.int32)
    paged = Paged(
        keys=torch.full((400, block, kv_heads, size), float("nan")),
        values=torch.full((400, block, kv_heads, size), float("nan")),
        block_tables=torch.from_numpy(tables),
        context_lens=torch.tensor(contexts, dtype=torch.int32),
    )
    ours = []
    for row, context in enumerate(contexts):
        k, v = random(10 + row, context, kv_heads, size), random(20 + row, context, kv_heads, size)
        for t in range(context):
            paged.keys[tables[row, t // block], t % block] = k[t]
            paged.values[tables[row, t // block], t % block] = v[t]
        k, v = (part.repeat_interleave(heads // kv_heads, 1) for part in (k, v))
        weights = (torch.einsum("hd,thd->ht", query[row], k) / size**0.5).softmax(-1)
        ours.append(torch.einsum("ht,thd->hd", weights, v))
    together = kernels.attend(query, paged)
    torch.testing.assert_close(together, torch.stack(ours), atol=1e-5, rtol=1e-5)
    alone = Paged(
        keys=paged.keys, values=paged.values, block_tables=paged.block_tables[3:4], context_lens=paged.context_lens[3:4]
    )
    assert torch.equal(kernels.attend(query[3:4], alone)[0], together[3])


def test_attention_to_keys_that_are_far_apart(kernels: Kernels) -> None:
    """Scores of 0, 1000 and 1000 + ln 3: the first weighs nothing, the others a quarter and three quarters."""
    keys = torch.tensor([0.0, 1000.0, 1000.0 + math.log(3)]).view(1, 3, 1, 1)
    paged = Paged(
        keys=keys,
        values=torch.tensor([1e6, 4.0, 8.0]).view(1, 3, 1, 1),
        block_tables=torch.zeros(1, 1, dtype=torch.int32),
        context_lens=torch.tensor([3], dtype=torch.int32),
    )
    assert kernels.attend(torch.ones(1, 1, 1), paged).item() == pytest.approx(7.0, rel=1e-4)


@pytest.mark.parametrize(("dtype", "taken"), [("float32", True), ("bfloat16", False), ("float64", False)])
def test_they_are_for_float32(kernels: Kernels, dtype: str, taken: bool) -> None:
    del kernels  # which are there, at least
    assert (kernels_for(torch.empty(1, dtype=getattr(torch, dtype))) is not None) == taken
