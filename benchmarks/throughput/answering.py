"""The child's side of a contender: commands in, one JSON object a line, and answers out. Standard library only: it
also runs in interpreters that have none of our packages."""

import json
import os
import sys
import time
from collections.abc import Callable

Generate = Callable[[list[list[int]]], list[list[int]]]
"""Prompts in, output ids out."""


def answer(load: Callable[[], tuple[str, Generate]]) -> None:
    """Load, say so with the version, then answer ``{"prompts": [...]}`` with the seconds it took and the output ids,
    until standard input closes. What libraries print goes to standard error."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    version, generate = load()
    print(json.dumps({"version": version}), file=replies, flush=True)
    for line in sys.stdin:
        prompts = json.loads(line)["prompts"]
        began = time.perf_counter()
        outputs = generate(prompts)
        seconds = time.perf_counter() - began
        print(json.dumps({"seconds": seconds, "outputs": outputs}), file=replies, flush=True)
