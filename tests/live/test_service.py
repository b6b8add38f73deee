"""The service over a fake engine, in process: what it answers, in OpenAI's words."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest

pytest.importorskip("starlette", reason="needs the live extra: make test-live")
httpx = pytest.importorskip("httpx", reason="needs the live extra: make test-live")

from aebench.service.app import application  # noqa: E402
from aebench.service.bodies import Message  # noqa: E402
from aebench.service.chat_template import ChatTemplate  # noqa: E402
from aebench.service.limits import Limits  # noqa: E402
from aebench.service.service import Service  # noqa: E402
from tests.live.fake_engine import FakeEngine, tiny  # noqa: E402

T = TypeVar("T")
COMPLETION = {"model": "tiny", "prompt": "ab", "max_tokens": 4, "seed": 0}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 4, "seed": 0}


@contextmanager
def engine_of(**settings: Any) -> Iterator[FakeEngine]:
    engine = FakeEngine(**settings)
    try:
        yield engine
    finally:
        engine.close()


def with_client(engine: FakeEngine, use: Callable[[Any, Service], Awaitable[T]], **settings: Any) -> T:
    """What ``use`` returns, given a client of a service over the engine."""

    async def run() -> T:
        service = Service(engine, [settings.pop("model", None) or tiny()], **settings)
        transport = httpx.ASGITransport(application(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await use(client, service)

    return asyncio.run(run())


def ask(path: str, body: Any, *, engine: FakeEngine | None = None, headers: Any = None, **settings: Any) -> Any:
    """The answer to one POST."""

    async def post(client: Any, _: Service) -> Any:
        return await client.post(path, json=body, headers=headers)

    if engine is not None:
        return with_client(engine, post, **settings)
    with engine_of() as fresh:
        return with_client(fresh, post, **settings)


def get(path: str, headers: Any = None, **settings: Any) -> Any:
    """The answer to one GET."""

    async def fetch(client: Any, _: Service) -> Any:
        return await client.get(path, headers=headers)

    with engine_of() as engine:
        return with_client(engine, fetch, **settings)


def events_of(answer: Any) -> list[Any]:
    """The chunks of a stream, which must end as streams do."""
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = answer.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def letters(prompt: str, num: int, seed: int = 0) -> str:
    """What the fake engine continues a prompt with."""
    return "".join(chr(97 + (sum(prompt.encode()) + seed + place) % 26) for place in range(num))


def test_a_completion_has_text_finish_reason_and_usage() -> None:
    answer = ask("/v1/completions", COMPLETION)
    assert answer.status_code == 200
    told = answer.json()
    assert told["object"] == "text_completion" and told["model"] == "tiny" and told["id"].startswith("cmpl-")
    expected = {"index": 0, "text": letters("ab", 4), "logprobs": None, "finish_reason": "length"}
    assert told["choices"] == [expected]
    assert told["usage"] == {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6}


@pytest.mark.parametrize(
    ("prompt", "texts", "num_prompt_tokens"),
    [
        (["ab", "c"], ["ab", "c"], 3),
        ([97, 98], ["ab"], 2),
        ([[97, 98], [99]], ["ab", "c"], 3),
    ],
)
def test_prompts_may_be_texts_or_ids(prompt: Any, texts: list[str], num_prompt_tokens: int) -> None:
    told = ask("/v1/completions", {**COMPLETION, "prompt": prompt}).json()
    assert [choice["text"] for choice in told["choices"]] == [letters(text, 4) for text in texts]
    assert told["usage"]["prompt_tokens"] == num_prompt_tokens


def test_n_answers_have_seeds_of_their_own_and_count_the_prompt_once() -> None:
    told = ask("/v1/completions", {**COMPLETION, "prompt": ["ab", "c"], "n": 2, "seed": 5}).json()
    expected = [letters("ab", 4, 5), letters("ab", 4, 6), letters("c", 4, 5), letters("c", 4, 6)]
    assert [(choice["index"], choice["text"]) for choice in told["choices"]] == list(enumerate(expected))
    assert told["usage"] == {"prompt_tokens": 3, "completion_tokens": 16, "total_tokens": 19}


def test_echo_repeats_the_prompt_whole_or_streamed() -> None:
    assert ask("/v1/completions", {**COMPLETION, "echo": True}).json()["choices"][0]["text"] == "ab" + letters("ab", 4)
    body = {**COMPLETION, "prompt": [[97, 98]], "echo": True, "stream": True}
    chunks = events_of(ask("/v1/completions", body))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "ab" + letters("ab", 4)


def test_what_was_asked_reaches_the_engine() -> None:
    with engine_of() as engine:
        body = {**COMPLETION, "temperature": 0.5, "top_p": 0.9, "stop": ["x", "y"], "ignore_eos": True, "seed": -1}
        assert ask("/v1/completions", body, engine=engine).status_code == 200
        (request,) = engine.submitted
    assert (request.sampling.temperature, request.sampling.top_p) == (0.5, 0.9)
    assert request.sampling.seed == 2**63 - 1
    assert (request.stop, request.ignore_eos, request.max_tokens) == (("x", "y"), True, 4)


@pytest.mark.parametrize("changes", [{"temperature": 0}, {"temperature": 1e-300}, {"top_p": 0}, {"top_p": 1e-300}])
def test_sampling_that_leaves_no_choice_is_greedy(changes: Any) -> None:
    with engine_of() as engine:
        ask("/v1/completions", {**COMPLETION, **changes}, engine=engine)
        sampling = engine.submitted[0].sampling
    assert (sampling.temperature, sampling.top_p) == (0.0, 1.0)


def test_requests_without_a_seed_differ() -> None:
    with engine_of() as engine:
        for _ in range(2):
            ask("/v1/completions", {**COMPLETION, "seed": None}, engine=engine)
        first, second = engine.submitted
    assert first.sampling.seed != second.sampling.seed
    assert first.sampling.temperature == 1.0


def test_a_completion_streams_chunks_then_usage_then_done() -> None:
    body = {**COMPLETION, "stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = events_of(ask("/v1/completions", body))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == letters("ab", 4)
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "length"]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 4


def test_no_usage_in_a_stream_unless_asked() -> None:
    chunks = events_of(ask("/v1/completions", {**COMPLETION, "stream": True}))
    assert all("usage" not in chunk and chunk["choices"] for chunk in chunks)


def test_logprobs_of_a_completion_line_up_whole_or_streamed() -> None:
    body = {**COMPLETION, "logprobs": 2}
    told = ask("/v1/completions", body).json()["choices"][0]["logprobs"]
    text = letters("ab", 4)
    assert (
        told["tokens"] == list(text) and told["token_logprobs"] == [-0.25] * 4 and told["text_offset"] == [0, 1, 2, 3]
    )
    assert told["top_logprobs"][0] == {"A": -9999.0, "B": -1.5, text[0]: -0.25}
    streamed = events_of(ask("/v1/completions", {**body, "stream": True}))
    offsets = [chunk["choices"][0]["logprobs"]["text_offset"] for chunk in streamed]
    assert offsets == [[0], [1], [2], [3]]


def test_a_chat_has_a_message() -> None:
    with engine_of() as engine:
        told = ask("/v1/chat/completions", CHAT, engine=engine).json()
        prompt = bytes(engine.submitted[0].prompt).decode()
    assert prompt == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    (choice,) = told["choices"]
    assert choice["message"] == {"role": "assistant", "content": letters(prompt, 4), "refusal": None}
    assert choice["finish_reason"] == "length" and told["object"] == "chat.completion"
    assert told["usage"] == {"prompt_tokens": len(prompt), "completion_tokens": 4, "total_tokens": len(prompt) + 4}


def test_a_chat_streams_role_text_end_usage() -> None:
    body = {**CHAT, "n": 2, "stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = events_of(ask("/v1/chat/completions", body))
    for index in (0, 1):
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        assert len("".join(choice["delta"].get("content", "") for choice in mine)) == 4
        assert [choice["finish_reason"] for choice in mine] == [None] * 5 + ["length"]
    assert last["usage"]["completion_tokens"] == 8


def test_logprobs_of_a_chat_have_bytes_and_alternatives() -> None:
    told = ask("/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 2}).json()["choices"][0]["logprobs"]
    entry = told["content"][0]
    assert entry["logprob"] == -0.25 and entry["bytes"] == list(entry["token"].encode())
    assert [top["token"] for top in entry["top_logprobs"]] == ["A", "B"]
    bare = ask("/v1/chat/completions", {**CHAT, "logprobs": True}).json()["choices"][0]["logprobs"]
    assert bare["content"][0]["top_logprobs"] == []


def test_a_chat_without_a_limit_fills_the_context() -> None:
    body = {key: value for key, value in CHAT.items() if key != "max_tokens"}
    told = ask("/v1/chat/completions", body).json()
    assert told["usage"]["total_tokens"] == 64
    assert ask("/v1/chat/completions", {**body, "max_completion_tokens": 3}).json()["usage"]["completion_tokens"] == 3


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]
    with engine_of() as engine:
        ask("/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": parts}]}, engine=engine)
        assert b"user\nxy<" in bytes(engine.submitted[0].prompt)


def test_a_model_with_a_prefix_puts_it_before_texts_only() -> None:
    with engine_of() as engine:
        model = tiny(prefix=(1,))
        ask("/v1/completions", {**COMPLETION, "prompt": ""}, engine=engine, model=model)
        ask("/v1/completions", {**COMPLETION, "prompt": [7]}, engine=engine, model=model)
        assert [request.prompt for request in engine.submitted] == [(1,), (7,)]


def test_hydraserve_requests_are_answered_in_its_way() -> None:
    told = ask("/", {"id": 7, "model": "tiny", "prompt": "ab", "stream": False, "max_tokens": 4}).json()
    assert told == {"id": 7, "model": "tiny", "text": letters("ab", 4), "completion_tokens": 4}
    messages = json.dumps([{"role": "user", "content": "a"}])
    streamed = ask("/", {"id": "r", "model": "tiny", "prompt": messages, "stream": True, "max_tokens": 5})
    assert streamed.headers["content-type"] == "text/plain; charset=utf-8"
    text, _, num = streamed.text.rpartition("#")
    assert len(text) == 5 and num == "5"
    refused = ask("/", {"model": "tiny", "prompt": "hello", "stream": True})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "prompt"
    assert ask("/", {"model": "llama/3", "prompt": "hello"}).status_code == 404


def test_models_are_listed_and_found_by_id() -> None:
    listed = get("/v1/models", model=tiny(name="org/tiny")).json()
    assert listed["object"] == "list" and [entry["id"] for entry in listed["data"]] == ["org/tiny"]
    assert get("/v1/models/org/tiny", model=tiny(name="org/tiny")).json()["max_model_len"] == 64
    missing = get("/v1/models/other")
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "model_not_found"


LONG = "a" * 62
BAD = [
    ("/v1/completions", {}, "model"),
    ("/v1/completions", {"model": "tiny"}, "prompt"),
    ("/v1/completions", {**COMPLETION, "prompt": []}, "prompt"),
    ("/v1/completions", {**COMPLETION, "prompt": ""}, "prompt"),
    ("/v1/completions", {**COMPLETION, "prompt": None}, "prompt"),
    ("/v1/completions", {**COMPLETION, "prompt": [[]]}, "prompt"),
    ("/v1/completions", {**COMPLETION, "prompt": [1, "a"]}, "prompt"),
    ("/v1/completions", {**COMPLETION, "prompt": [True]}, "prompt"),
    ("/v1/completions", {**COMPLETION, "prompt": [-1]}, "prompt"),
    ("/v1/completions", {**COMPLETION, "prompt": [257]}, "prompt"),
    ("/v1/completions", {**COMPLETION, "prompt": [10**400]}, "prompt"),
    ("/v1/completions", {**COMPLETION, "prompt": LONG}, "max_tokens"),
    ("/v1/completions", {**COMPLETION, "max_tokens": 0}, "max_tokens"),
    ("/v1/completions", {**COMPLETION, "max_tokens": "4"}, "max_tokens"),
    ("/v1/completions", {**COMPLETION, "max_tokens": True}, "max_tokens"),
    ("/v1/completions", {**COMPLETION, "max_tokens": 10**30}, "max_tokens"),
    ("/v1/completions", {**COMPLETION, "temperature": 2.1}, "temperature"),
    ("/v1/completions", {**COMPLETION, "temperature": "hot"}, "temperature"),
    ("/v1/completions", {**COMPLETION, "top_p": -0.1}, "top_p"),
    ("/v1/completions", {**COMPLETION, "n": 17}, "n"),
    ("/v1/completions", {**COMPLETION, "n": 0}, "n"),
    ("/v1/completions", {**COMPLETION, "best_of": 2}, None),
    ("/v1/completions", {**COMPLETION, "suffix": "x"}, "suffix"),
    ("/v1/completions", {**COMPLETION, "stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ("/v1/completions", {**COMPLETION, "stop": ""}, "stop"),
    ("/v1/completions", {**COMPLETION, "stop": 3}, "stop"),
    ("/v1/completions", {**COMPLETION, "stop": "x" * 1001}, "stop"),
    ("/v1/completions", {**COMPLETION, "seed": 2**63}, "seed"),
    ("/v1/completions", {**COMPLETION, "presence_penalty": 0.5}, "presence_penalty"),
    ("/v1/completions", {**COMPLETION, "logit_bias": {"5": 1}}, "logit_bias"),
    ("/v1/completions", {**COMPLETION, "logprobs": 21}, "logprobs"),
    ("/v1/completions", {**COMPLETION, "logprobs": 1, "echo": True}, None),
    ("/v1/completions", {**COMPLETION, "stream_options": {"include_usage": True}}, None),
    ("/v1/completions", {**COMPLETION, "stream": "yes"}, "stream"),
    ("/v1/chat/completions", {**CHAT, "messages": []}, "messages"),
    ("/v1/chat/completions", {**CHAT, "messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ("/v1/chat/completions", {**CHAT, "messages": [{"role": "user"}]}, "messages[0].content"),
    ("/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": [1]}]}, "messages[0].content"),
    ("/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": LONG}]}, "max_tokens"),
    ("/v1/chat/completions", {**CHAT, "max_tokens": None, "messages": [{"role": "user", "content": LONG}]}, "messages"),
    ("/v1/chat/completions", {**CHAT, "tools": [{"type": "function"}]}, "tools"),
    ("/v1/chat/completions", {**CHAT, "response_format": {"type": "json_object"}}, "response_format"),
    ("/v1/chat/completions", {**CHAT, "top_logprobs": 2}, None),
]


@pytest.mark.parametrize(("path", "body", "param"), BAD)
def test_bad_parameters_are_400_and_named(path: str, body: Any, param: str | None) -> None:
    with engine_of() as engine:
        answer = ask(path, body, engine=engine)
        assert engine.submitted == []
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert len(error["message"]) < 400


def test_a_context_too_long_is_said_with_numbers() -> None:
    error = ask("/v1/completions", {**COMPLETION, "prompt": LONG}).json()["error"]
    assert error["message"] == "62 prompt tokens and 4 output tokens do not fit: tiny holds 64 in all"
    assert error["code"] == "context_length_exceeded"


def test_an_unknown_model_is_404_and_known_ones_are_named() -> None:
    answer = ask("/v1/completions", {**COMPLETION, "model": "big"})
    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == "the model 'big' does not exist here; known: tiny"


def test_null_means_the_default_and_unknown_fields_are_ignored() -> None:
    nulls = dict.fromkeys(("temperature", "top_p", "n", "stream", "stop", "logprobs", "echo", "best_of", "suffix"))
    assert ask("/v1/completions", {**COMPLETION, **nulls, "user": "me", "colour": [1]}).status_code == 200


def test_unknown_routes_and_methods_are_errors_of_the_same_form() -> None:
    assert get("/v2/models").json()["error"]["message"] == "there is no GET '/v2/models' here"
    wrong = get("/v1/completions")
    assert wrong.status_code == 405 and wrong.headers["allow"] == "POST" and "error" in wrong.json()


def test_the_api_key_is_asked_for_except_for_health_and_metrics() -> None:
    for header in (None, "Bearer other", "secret", "Basic secret", "Bearer \u00fc"):
        headers = {} if header is None else {"Authorization": header.encode()}
        answer = ask("/v1/completions", COMPLETION, headers=headers, api_key="secret")
        assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
    assert get("/v1/models", api_key="secret").status_code == 401
    assert get("/v1/models", api_key="secret", headers={"Authorization": "Bearer secret"}).status_code == 200
    assert get("/health", api_key="secret").status_code == 200
    assert get("/metrics", api_key="secret").status_code == 200


def test_a_body_that_is_too_large_is_413_declared_or_not() -> None:
    async def post(client: Any, _: Service) -> Any:
        async def unending() -> Any:
            for _ in range(100):
                yield b"x" * 1000

        headers = {"Content-Type": "application/json"}
        declared = await client.post("/v1/completions", content=b"x" * 5000, headers=headers)
        chunked = await client.post("/v1/completions", content=unending(), headers=headers)
        return declared, chunked

    with engine_of() as engine:
        answers = with_client(engine, post, limits=Limits(body_bytes=4096))
    assert [answer.status_code for answer in answers] == [413, 413]
    assert answers[0].json()["error"]["message"] == "the body is larger than 4096 bytes"


def test_other_content_types_are_415() -> None:
    async def post(client: Any, _: Service) -> Any:
        body = json.dumps(COMPLETION)
        kinds = ("text/plain", "application/x-www-form-urlencoded", "", "application/json; charset=utf-8")
        return [(await client.post("/v1/completions", content=body, headers={"Content-Type": k})) for k in kinds]

    with engine_of() as engine:
        assert [answer.status_code for answer in with_client(engine, post)] == [415, 415, 415, 200]


def test_a_full_queue_is_429_until_it_empties() -> None:
    async def use(client: Any, service: Service) -> list[int]:
        engine.pause()
        waiting = [asyncio.create_task(client.post("/v1/completions", json=COMPLETION)) for _ in range(2)]
        while service.num_queued < 2:
            await asyncio.sleep(0.001)
        full = await client.post("/v1/completions", json=COMPLETION)
        assert full.headers["retry-after"] == "1" and full.json()["error"]["type"] == "rate_limit_error"
        engine.resume()
        codes = [full.status_code, *[(await answer).status_code for answer in waiting]]
        return [*codes, (await client.post("/v1/completions", json=COMPLETION)).status_code]

    with engine_of() as engine:
        assert with_client(engine, use, limits=Limits(queue=2)) == [429, 200, 200, 200]


def test_more_sequences_than_can_ever_queue_are_400() -> None:
    answer = ask("/v1/completions", {**COMPLETION, "n": 3}, limits=Limits(queue=2))
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "n"


def test_without_an_instance_health_and_requests_are_503_unless_it_starts_on_demand() -> None:
    async def use(client: Any, _: Service) -> list[int]:
        return [
            (await client.get("/health")).status_code,
            (await client.post("/v1/completions", json=COMPLETION)).status_code,
        ]

    with engine_of() as engine:
        engine.ready = 0
        assert with_client(engine, use) == [503, 503]
        assert with_client(engine, use, starts_on_demand=True) == [200, 200]
        engine.ready, engine.failure = 1, "a worker died thrice"
        assert with_client(engine, use) == [503, 503]


@pytest.mark.parametrize("stream", [False, True])
def test_a_lost_request_is_503_with_the_engines_words(stream: bool) -> None:
    async def use(client: Any, service: Service) -> Any:
        engine.pause()
        answer = asyncio.create_task(client.post("/v1/completions", json={**COMPLETION, "stream": stream}))
        while not engine.running:
            await asyncio.sleep(0.001)
        engine.lose("the worker of stage 0 died (SIGKILL)")
        told = await answer
        assert service.generations == {}
        return told

    with engine_of() as engine:
        answer = with_client(engine, use)
    assert answer.status_code == 503
    assert answer.json()["error"]["message"] == "the worker of stage 0 died (SIGKILL)"


def test_a_stream_that_is_lost_midway_says_so_and_ends() -> None:
    async def use(client: Any, _: Service) -> Any:
        answer = asyncio.create_task(
            client.post("/v1/completions", json={**COMPLETION, "max_tokens": 50, "stream": True})
        )
        while not (engine.submitted and len(engine.submitted[0].ids) >= 2):
            await asyncio.sleep(0.001)
        engine.lose("gone")
        return await answer

    with engine_of(step_time=0.01) as engine:
        answer = with_client(engine, use)
    *chunks, last = events_of(answer)
    assert chunks and last["error"]["message"] == "gone"


def test_draining_refuses_new_requests_finishes_old_ones_and_aborts_the_late() -> None:
    async def use(client: Any, service: Service) -> None:
        short = asyncio.create_task(client.post("/v1/completions", json=COMPLETION))
        late = asyncio.create_task(client.post("/v1/completions", json={**COMPLETION, "max_tokens": 60}))
        while len(engine.running) < 2:
            await asyncio.sleep(0.001)
        drain = asyncio.create_task(service.drain(0.3))
        await asyncio.sleep(0.01)
        assert (await client.get("/health")).json() == {"status": "draining"}
        assert (await client.post("/v1/completions", json=COMPLETION)).status_code == 503
        assert not await drain
        assert [(await short).status_code, (await late).status_code] == [200, 503]

    with engine_of(step_time=0.02) as engine:
        with_client(engine, use)
        assert engine.running == {} and len(engine.aborted) == 1


def test_metrics_count_what_happened_and_parse() -> None:
    async def use(client: Any, _: Service) -> str:
        await client.post("/v1/completions", json=COMPLETION)
        await client.post("/v1/completions", json={})
        await client.get("/nowhere")
        return (await client.get("/metrics")).text

    with engine_of() as engine:
        text = with_client(engine, use)
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert all(float(value) >= 0 for value in values.values())
    assert values['aebench_http_requests_total{path="/v1/completions",code="200"}'] == "1"
    assert values['aebench_http_requests_total{path="/v1/completions",code="400"}'] == "1"
    assert values['aebench_http_requests_total{path="other",code="404"}'] == "1"
    assert values['aebench_sequences_finished_total{reason="length"}'] == "1"
    assert values['aebench_output_tokens_total{model="tiny"}'] == "4"
    for name in ("ttft", "tpot", "e2e"):
        assert values[f"aebench_{name}_seconds_count"] == "1" == values[f'aebench_{name}_seconds_bucket{{le="+Inf"}}']


def test_the_templates_of_a_model_are_run_in_a_sandbox() -> None:
    strict = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('user first') }}{% endif %}x"
    body = {**CHAT, "messages": [{"role": "system", "content": "a"}]}
    answer = ask("/v1/chat/completions", body, model=tiny(chat_template=ChatTemplate(strict)))
    assert answer.status_code == 400 and answer.json()["error"]["message"].endswith("user first")
    for source in ("{{ messages.__class__.__mro__ }}", "{{ 1 / 0 }}", "{{ nothing.at.all }}"):
        answer = ask("/v1/chat/completions", CHAT, model=tiny(chat_template=ChatTemplate(source)))
        assert answer.status_code == 400, source


def test_a_model_without_a_tokenizer_takes_ids_only() -> None:
    model = tiny(tokenizer=None)
    assert ask("/v1/completions", {**COMPLETION, "prompt": [1, 2]}, model=model).status_code == 200
    refused = ask("/v1/completions", COMPLETION, model=model)
    assert refused.status_code == 400 and "expected token ids" in refused.json()["error"]["message"]


def test_the_openapi_document_describes_the_bodies() -> None:
    document = get("/openapi.json").json()
    assert document["components"]["schemas"]["ChatBody"]["required"] == ["model", "messages"]
    assert set(document["paths"]["/v1/completions"]["post"]["responses"]) >= {"200", "400", "429", "503"}


@pytest.mark.parametrize(
    ("field", "wrong", "neutral"),
    [("top_k", 40, -1), ("min_p", 0.1, 0.0), ("min_tokens", 4, 0), ("repetition_penalty", 1.2, 1.0)],
)
def test_sampling_of_other_engines_is_refused_unless_it_changes_nothing(field: str, wrong: Any, neutral: Any) -> None:
    answer = ask("/v1/completions", {**COMPLETION, field: wrong})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == field
    assert ask("/v1/completions", {**COMPLETION, field: neutral}).status_code == 200


def test_a_developer_message_is_a_system_message() -> None:
    first = Message.model_validate({"role": "developer", "content": "be brief"})
    assert first.role == "system"
