"""ServedModel: a model as clients see it: its name, how text becomes its tokens, and how many tokens it can hold."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from aebench.service.api_errors import ApiError, refused
from aebench.service.bodies import Message
from aebench.service.chat_template import ChatTemplate
from aebench.service.engine_port import Tokenizer
from serving.units import Tokens

Given = TypeVar("Given")
Made = TypeVar("Made")

SHORT_TEXT = 4096
"""Characters that are encoded on the spot (about 2 ms); longer texts on a thread, so that streams go on meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """One name under /v1/models."""

    name: str
    vocab: int
    max_context: Tokens
    """Prompt and output tokens that one sequence can ever have on an instance."""
    tokenizer: Tokenizer | None
    """None: prompts must be token ids, and answers have no text."""
    prefix: tuple[int, ...] = ()
    """Ids that a text begins with, as Llama's begin-of-text; a chat template writes its own."""
    chat_template: ChatTemplate = field(default_factory=ChatTemplate)
    created: int = 0
    """Unix time, as OpenAI's API wants one."""

    async def prompt_of(self, prompt: str | Sequence[int], param: str = "prompt") -> tuple[int, ...]:
        """The ids of a prompt, checked."""
        if not isinstance(prompt, str):
            return self._checked(tuple(prompt), param)
        return self._checked(self.prefix + await self._encoded(prompt, param), param)

    async def prompt_of_chat(self, messages: list[Message], param: str = "messages") -> tuple[int, ...]:
        """The ids of a chat; the template has put the tokens that a prompt begins with."""
        text = await _aside(self.chat_template.render, messages, sum(len(message.content) for message in messages))
        return self._checked(await self._encoded(text, param), param)

    def text_of(self, ids: Sequence[int]) -> str:
        """The text of ids, as an echo."""
        return "" if self.tokenizer is None else self.tokenizer.decode(ids)

    def token(self, token_id: int) -> str:
        """How one token is written; a special one too."""
        return "" if self.tokenizer is None else self.tokenizer.decode((token_id,), skip_special=False)

    def room(self, prompt: tuple[int, ...], wanted: Tokens | None, param: str) -> Tokens:
        """Output tokens that may follow a prompt; all that fit when None are wanted."""
        left = self.max_context - len(prompt)
        if left < 1 or (wanted or 1) > left:
            asked = f" and {wanted} output tokens" if wanted else ""
            message = f"{len(prompt)} prompt tokens{asked} do not fit: {self.name} holds {self.max_context} in all"
            raise ApiError(400, message, param=param, code="context_length_exceeded")
        return wanted or left

    async def _encoded(self, text: str, param: str) -> tuple[int, ...]:
        tokenizer = self.tokenizer
        if tokenizer is None:
            raise refused(param, f"{self.name} has no tokenizer: expected token ids at /v1/completions")
        return await _aside(lambda whole: tuple(tokenizer.encode(whole)), text, len(text))

    def _checked(self, ids: tuple[int, ...], param: str) -> tuple[int, ...]:
        if not ids:
            raise refused(param, f"{param}: expected at least one token")
        lowest, highest = min(ids), max(ids)
        if lowest < 0 or highest >= self.vocab:
            wrong = lowest if lowest < 0 else highest
            shown = wrong if abs(wrong) < 10**18 else "a number beyond"
            raise refused(param, f"{param}: token ids of {self.name} are 0 to {self.vocab - 1}, got {shown}")
        return ids


async def _aside(make: Callable[[Given], Made], given: Given, size: int) -> Made:
    return make(given) if size <= SHORT_TEXT else await asyncio.to_thread(make, given)
