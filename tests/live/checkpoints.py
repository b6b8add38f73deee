"""Checkpoints for tests: written small, and broken on purpose."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serving.live.make import make_checkpoint
from serving.live.shapes import Changes, config_table


def make_tiny(folder: Path, like: str = "llama-tiny", dtype: str = "float32", layers: int = 2, **how: Any) -> Path:
    """A checkpoint of a few hundred kilobytes."""
    make_checkpoint(folder, config_table(like, Changes(layers=layers), dtype), **{"seed": 0, **how})
    return folder


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file in place."""
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))


def edit_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the header of a safetensors file in place; the bytes of its tensors stay."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    table = json.loads(content[8 : 8 + length])
    change(table)
    header = json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])
