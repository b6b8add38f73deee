"""LiveExecutor: a step goes to all stages of an instance as one batch; the last one's tokens come back on the clock."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from random import Random

import numpy as np

from serving.core.instance import Instance
from serving.core.plan import StepPlan, StepResult
from serving.core.request import Sequence, State
from serving.live.batch import StepBatch, StepSample
from serving.live.errors import LiveError
from serving.live.fleet import Fleet
from serving.live.output import TokenLogprob
from serving.live.recording import StepEnded
from serving.live.stream import OutputStream
from serving.live.worker_link import Reply
from serving.units import Tokens

Done = Callable[[StepResult], None]

PROMPTS_KEPT = 4096
"""Made-up prompts that are remembered; one that was forgotten is made up again, the same."""


class LiveExecutor:
    """The Executor port."""

    def __init__(self, fleet: Fleet, seed: int) -> None:
        self._fleet = fleet
        self._streams: dict[int, OutputStream] = {}
        self._made_up_prompt = lru_cache(maxsize=PROMPTS_KEPT)(partial(made_up_prompt, seed))

    def listen(self, request_id: int, stream: OutputStream) -> None:
        """Tell a request's tokens to a stream, which may end it early; one without a stream runs to its last token."""
        self._streams[request_id] = stream

    def forget(self, request_id: int) -> None:
        """Nobody listens to the request any more."""
        self._streams.pop(request_id, None)

    def submit(self, instance: Instance, plan: StepPlan, done: Done) -> None:
        """Send the step; ``done`` is called when its tokens are here, and never if a process dies before."""
        batch = self._batch(instance, plan)
        header, buffers = batch.encode()
        command = {"op": "step", "num_stages": len(instance.workers), **header}
        *others, last = self._fleet.links(instance)
        for link in others:
            link.call(command, None, buffers)
        step = Step(instance, instance.num_steps, plan, batch.wants.tolist())
        last.call(command, partial(self._ended, step, done), buffers)

    def step_ends(self, instance: Instance, plan: StepPlan) -> None:
        """Unknown before they are computed."""
        del instance, plan

    def _batch(self, instance: Instance, plan: StepPlan) -> StepBatch:
        vocab = instance.spec.vocab
        work = list(zip(plan.sequences, plan.num_tokens, strict=True))
        return StepBatch.of(
            ids=[self._ids(sequence, num_tokens, vocab) for sequence, num_tokens in work],
            num_computed=[sequence.num_computed for sequence in plan.sequences],
            block_tables=[sequence.block_table for sequence in plan.sequences],
            wants=[sequence.num_computed + num_tokens == sequence.num_tokens for sequence, num_tokens in work],
            sampling=[sequence.request.sampling for sequence in plan.sequences],
        )

    def _ids(self, sequence: Sequence, num_tokens: Tokens, vocab: int) -> list[int]:
        """The tokens that a sequence computes now, of its prompt, its output or both."""
        request = sequence.request
        start = sequence.num_computed
        behind = start - request.num_prompt_tokens
        if behind >= 0:
            return sequence.output_ids[behind : behind + num_tokens]
        prompt = request.prompt or self._made_up_prompt(request.request_id, request.num_prompt_tokens, vocab)
        ids = list(prompt[start : start + num_tokens])
        return ids + sequence.output_ids[: num_tokens - len(ids)]

    def _ended(self, step: "Step", done: Done, reply: Reply) -> None:
        """Give each sequence its tokens, and end those that met a stop."""
        plan, wants = step.plan, step.wants
        try:
            sample = StepSample.decode(reply.header, reply.payload)
            if len(sample.ids) != sum(wants):
                raise LiveError(f"a step of {sum(wants)} sequences that end came back with {len(sample.ids)} tokens")
        except LiveError as error:
            self._fleet.fault(step.instance.workers[-1], str(error))
            return
        ids = sample.ids.tolist()
        rows = iter(range(len(ids)))
        news: list[News] = []
        for sequence, wanted in zip(plan.sequences, wants, strict=True):
            if wanted:
                row = next(rows)
                self._take(sequence, ids[row], _logprobs(sequence, row, sample), news)
        self._fleet.record(
            StepEnded(
                at=self._fleet.clock.now,
                instance=step.instance.instance_id,
                num_stages=len(step.instance.workers),
                serial=step.serial,
                num_output=tuple(wants),
                final_tokens=tuple(sequence.final_tokens for sequence in plan.sequences),
            )
        )
        done(StepResult(plan, wants))
        for item in news:  # while the next step is computed
            item.stream.push((item.token_id,), item.logprobs, item.is_last)

    def _take(self, sequence: Sequence, token_id: int, logprobs: tuple[TokenLogprob, ...], news: list["News"]) -> None:
        """Append a sequence's new token, and end it if that is its last; its stream is told now if only the text can
        say so, and later otherwise."""
        sequence.output_ids.append(token_id)
        stream = self._streams.get(sequence.request.request_id)
        if stream is None or sequence.state is State.ABORTED:
            return
        num_tokens = sequence.num_tokens + 1
        is_last = num_tokens >= sequence.final_tokens
        if stream.minds_text:
            stream.push((token_id,), logprobs, is_last)
            ends = stream.finish_reason is not None
        else:
            news.append(News(stream, token_id, logprobs, is_last))
            ends = is_last or stream.ends_at(token_id)
        if ends:
            sequence.final_tokens = min(sequence.final_tokens, num_tokens)
            del self._streams[sequence.request.request_id]


@dataclass(frozen=True, slots=True)
class Step:
    """One that is being computed; there may be as many of an instance as it has stages."""

    instance: Instance
    serial: int
    plan: StepPlan
    wants: list[int]
    """Per sequence, the tokens that it gains."""


@dataclass(frozen=True, slots=True)
class News:
    """A token that a stream is still to be told."""

    stream: OutputStream
    token_id: int
    logprobs: tuple[TokenLogprob, ...]
    is_last: bool


def made_up_prompt(seed: int, request_id: int, num_tokens: Tokens, vocab: int) -> tuple[int, ...]:
    """Token ids for a request of which only the length is known; always the same for the same request."""
    draws = np.random.default_rng(Random(f"{seed}/prompt/{request_id}").getrandbits(64))
    return tuple(draws.integers(vocab, size=num_tokens).tolist())


def _logprobs(sequence: Sequence, row: int, sample: StepSample) -> tuple[TokenLogprob, ...]:
    """What the request wanted to know of its token's probability."""
    wanted, found = sequence.request.sampling.logprobs, sample.logprobs
    if wanted is None or found is None:
        return ()
    top = tuple(zip(found.top_ids[row, :wanted].tolist(), found.top[row, :wanted].tolist(), strict=True))
    return (TokenLogprob(token_id=int(sample.ids[row]), logprob=float(found.chosen[row]), top=top),)
