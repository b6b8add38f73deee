"""ChatTemplate: a list of messages as the one text that a model was trained to continue."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from aebench.errors import AebenchError
from aebench.service.api_errors import SHOWN, refused
from aebench.service.bodies import Message

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""For models that come without a template of their own."""


class ChatTemplate:
    """A template of a model's folder, run in a sandbox: it is code from whoever made the model."""

    def __init__(
        self, source: str = CHATML, tokens: dict[str, str] | None = None, where: str = "chat template"
    ) -> None:
        self._where = where
        self._tokens = tokens or {}
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = datetime.now().strftime
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise AebenchError(f"{where}: not a Jinja template ({error})") from error

    @classmethod
    def read(cls, folder: Path) -> "ChatTemplate":
        """The template of a Hugging Face folder, ChatML when it has none."""
        path = folder / "tokenizer_config.json"
        table = _table(path)
        tokens = {key: _token(value) for key, value in table.items() if key.endswith("_token") and _token(value)}
        own_file = folder / "chat_template.jinja"
        if own_file.exists():
            return cls(own_file.read_text(encoding="utf-8"), tokens, str(own_file))
        source = table.get("chat_template")
        if isinstance(source, list):
            named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
            source = named.get("default")
        if source is None:
            return cls(CHATML, tokens)
        if not isinstance(source, str):
            raise AebenchError(f"{path}, chat_template: expected a string, got {type(source).__name__}")
        return cls(source, tokens, f"{path}, chat_template")

    def render(self, messages: list[Message]) -> str:
        """The prompt; an ApiError with the template's own words when it refuses the messages."""
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self._template.render(messages=turns, add_generation_prompt=True, **self._tokens)
        except (TemplateError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
            message = f"the model's chat template does not take these messages: {str(error)[:SHOWN]}"
            raise refused("messages", message) from error


def _table(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise AebenchError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(table, dict):
        raise AebenchError(f"{path}: expected a JSON object, got {type(table).__name__}")
    return table


def _token(value: Any) -> str:
    """A special token's text, which is a string or a table."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else ""


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> None:
    raise TemplateError(message)
