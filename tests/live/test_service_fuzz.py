"""Thousands of malformed requests: each is refused, or answered; none is the server's error."""

import asyncio
import json
import math
import random
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the live extra: make test-live")
httpx = pytest.importorskip("httpx", reason="needs the live extra: make test-live")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from aebench.service.app import application  # noqa: E402
from aebench.service.bodies import ChatBody, CompletionBody, HydraServeBody  # noqa: E402
from aebench.service.service import Service  # noqa: E402
from tests.live.fake_engine import FakeEngine, tiny  # noqa: E402

pytestmark = pytest.mark.faults

GOOD: dict[str, dict[str, Any]] = {
    "/v1/completions": {"model": "tiny", "prompt": "ab", "max_tokens": 2},
    "/v1/chat/completions": {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2},
    "/": {"model": "tiny", "prompt": "ab", "max_tokens": 2},
}
FIELDS = {"/v1/completions": CompletionBody, "/v1/chat/completions": ChatBody, "/": HydraServeBody}
REFUSED = (400, 404, 413, 415)
ODD: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        16,
        17,
        2**31,
        2**63,
        -(2**63),
        2**64,
        10**30,
        10**400,
        0.0,
        -0.0,
        0.5,
        1e-300,
        1e308,
    ),
    *(math.nan, math.inf, -math.inf, "", "a", "tiny", "\x00", "\ud800", "\udfff", "\U0001f600", "é" * 40, "x" * 5000),
    *(
        [],
        [[]],
        [None],
        [1],
        [-1],
        [256],
        [257],
        [10**30],
        [[1], []],
        [[1], "a"],
        ["a", 1],
        ["a"] * 17,
        [1.5],
        [[True]],
    ),
    *({}, {"a": {}}, {"include_usage": True}, {"include_usage": 1}, [{}], [{"role": "user"}], [{"type": "text"}]),
    *([{"role": "user", "content": [{"type": "text", "text": 1}]}], [{"role": "user", "content": "\ud800"}]),
    [{"role": "root", "content": "x"}],
]
RAW = [
    *(b"", b" ", b"{", b"[]", b"null", b"1", b'"x"', b"\x00", b"\xff\xfe", bytes(range(256)), b"{}" * 2, b"NaN"),
    *(b"[" * 100_000, b'{"a":' * 100_000, b'{"model":"tiny","model":1}', b'{"model":"\\ud800","prompt":"a"}'),
    *(b'{"model":"tiny","prompt":"\\udc00"}', b'{"model":"tiny","prompt":"a","max_tokens":' + b"9" * 5000 + b"}"),
    *(b'{"model":"tiny","prompt":"a","temperature":1e999}', b'{"model":"tiny","prompt":"a","temperature":NaN}'),
    *(b'{"model":"tiny","prompt":[' + b"1," * 200_000 + b"1]}", b'\xef\xbb\xbf{"model":"tiny","prompt":"a"}'),
    *(b'{"model":"tiny","prompt":"\xed\xa0\x80"}', b'{"model":"tiny","prompt":["a",' + b'"b",' * 50_000 + b'"c"]}'),
    b'{"model":"tiny","messages":[' + b"{}," * 100_000 + b"{}]}",
]
values = st.sampled_from(ODD) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def answers(requests: list[tuple[str, bytes, str]]) -> list[Any]:
    """What the service says to each; an exception in it is an exception here."""

    async def ask_all() -> list[Any]:
        app = application(Service(engine, [tiny()]))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return [
                await client.post(path, content=body, headers={"Content-Type": kind}) for path, body, kind in requests
            ]

    engine = FakeEngine()
    try:
        return asyncio.run(ask_all())
    finally:
        engine.close()


def check(answer: Any) -> bool:
    """Whether it is an answer; otherwise it must be a refusal in the form of OpenAI's errors."""
    if answer.status_code == 200:
        return True
    assert answer.status_code in REFUSED, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and 0 < len(error["message"]) < 1000
    return False


def test_every_odd_value_of_every_field_is_answered_or_refused() -> None:
    requests = [
        (path, json.dumps({**good, name: value}).encode(), "application/json")
        for path, good in GOOD.items()
        for name in FIELDS[path].model_fields
        for value in ODD
    ]
    assert len(requests) > 1500
    told = [check(answer) for answer in answers(requests)]
    assert 100 < sum(told) < len(told) - 1000


@pytest.mark.parametrize("path", GOOD)
def test_bodies_that_are_no_bodies_are_refused(path: str) -> None:
    told = answers([(path, body, "application/json") for body in RAW])
    passed = [body for body, answer in zip(RAW, told, strict=True) if check(answer)]
    assert passed == ([body for body in RAW if b"temperature" in body] if path == "/" else [])  # no field of it


def test_mangled_bytes_are_answered_or_refused() -> None:
    draw = random.Random("0/fuzz")
    requests = []
    for path, good in GOOD.items():
        for _ in range(350):
            body = bytearray(json.dumps(good).encode())
            for _ in range(draw.randint(1, 4)):
                place = draw.randrange(len(body))
                body[place : place + draw.randint(0, 3)] = draw.randbytes(draw.randint(0, 3))
            requests.append((path, bytes(body), draw.choice(["application/json", "text/plain", "\x7f", "a/b;c"])))
    assert sum(map(check, answers(requests))) < len(requests) / 2


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(st.data())
def test_drawn_bodies_are_answered_or_refused(data: Any) -> None:
    requests = []
    for path in GOOD:
        for _ in range(6):
            names = st.sampled_from(sorted(FIELDS[path].model_fields))
            changes = data.draw(st.dictionaries(names, values, min_size=1, max_size=3))
            requests.append((path, json.dumps({**GOOD[path], **changes}).encode(), "application/json"))
    for answer in answers(requests):
        check(answer)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "FROB"])
def test_other_methods_and_paths_are_refused(method: str) -> None:
    async def ask() -> list[int]:
        app = application(Service(engine, [tiny()]))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            paths = [*GOOD, "/v1", "/v1/models/%ED%A0%80", "/v1/models/%00", "/..%2f", "/v1/completions/", "//", "/%ff"]
            return [(await client.request(method, path)).status_code for path in paths]

    engine = FakeEngine()
    try:
        assert set(asyncio.run(ask())) <= {404, 405}
    finally:
        engine.close()
