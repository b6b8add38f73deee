"""Part: alignment, sizes that add up, and descriptions from other processes that do not."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.live.errors import LiveError
from serving.live.part import ALIGNMENT, Part

SHAPES = [("a", (3,)), ("b", (5, 16)), ("c", (1, 1)), ("d", (32,))]


def make_part(dtype: str = "float32") -> Part:
    return Part.of("m", range(1, 3), 4, dtype, SHAPES)


def test_tensors_start_at_multiples_of_the_alignment_with_no_more_room_than_needed() -> None:
    assert [entry.offset for entry in make_part().tensors] == [0, 64, 384, 448]
    assert [entry.offset for entry in make_part("bfloat16").tensors] == [0, 64, 256, 320]


def test_a_part_ends_with_its_last_tensor() -> None:
    part = make_part()
    assert (part.size, part.tensors[-1].num_bytes) == (448 + 128, 128)


def test_spans_hold_the_padding_that_follows_and_add_up_to_the_size() -> None:
    part = make_part()
    assert part.spans() == (64, 320, 64, 128)
    assert sum(part.spans()) == part.size


@given(
    st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=3), max_size=8), st.sampled_from(["float32", "float16"])
)
def test_every_part_survives_the_way_through_json(shapes: list[list[int]], dtype: str) -> None:
    named = [(f"t{place}", tuple(shape)) for place, shape in enumerate(shapes)]
    part = Part.of("m", range(1), 1, dtype, named)
    assert Part.from_json(json.loads(json.dumps(part.to_json()))) == part
    assert all(entry.offset % ALIGNMENT == 0 for entry in part.tensors)
    assert sum(part.spans()) == part.size


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layers": [3, 3]}, "part m[3:3]: expected layers within 0..4"),
        ({"layers": [1, 5]}, "part m[1:5]: expected layers within 0..4"),
        ({"layers": [1]}, "ValueError"),
        ({"layers": None}, "TypeError"),
        ({"size": 575}, "its tensors end at byte 576, it claims 575 bytes"),
        ({"size": -1}, "-1 is not a count"),
        ({"size": True}, "True is not a count"),
        ({"num_layers": "4"}, "'4' is not a count"),
        ({"tensors": {"name": 1}}, "TypeError"),
        ({"tensors": []}, "its tensors end at byte 0"),
    ],
)
def test_a_description_that_does_not_hold_together_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(LiveError) as caught:
        Part.from_json({**make_part().to_json(), **change})
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"offset": 0}, "b: starts at 0, inside the tensor before it"),
        ({"offset": 65}, "b: starts at 65, expected a multiple of 64"),
        ({"offset": 1 << 40}, "c: starts at 384, inside the tensor before it"),
        ({"num_bytes": 319}, "b: 319 bytes, its shape and dtype make 320"),
        ({"shape": [5, 17]}, "b: 320 bytes, its shape and dtype make 340"),
        ({"shape": [-5, -16]}, "-5 is not a count"),
        ({"dtype": "int4"}, "b: dtype 'int4', expected one of float32, bfloat16, float16"),
        ({"dtype": "float16"}, "b: 320 bytes, its shape and dtype make 160"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(change: dict[str, Any], said: str) -> None:
    table = make_part().to_json()
    table["tensors"][1] |= change
    with pytest.raises(LiveError) as caught:
        Part.from_json(table)
    assert said in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(["model", "layers", "num_layers", "tensors", "size"]), json_values)
def test_no_description_raises_anything_but_our_error(key: str, value: Any) -> None:
    try:
        Part.from_json({**make_part().to_json(), key: value})
    except LiveError:
        return
    assert key in ("model", "num_layers") or value == make_part().to_json()[key]
