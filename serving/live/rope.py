"""Rotary positions: every pair of a head's dimensions turns with the token's position, at its own frequency."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from serving.live.config import ModelConfig, RopeScaling


@dataclass(frozen=True, slots=True)
class Turn:
    """Cosines and sines of a step's tokens, both [T, 1, head_size]; the first half of the sines is negative, so that
    a vector turns as ``x * cos + x.roll(half) * sin``."""

    cos: Tensor
    sin: Tensor


class Rotary:
    """The frequencies of a model, from which every step takes the turns of its positions: a table of all positions
    would be larger than a layer for long contexts."""

    def __init__(self, config: ModelConfig, like: Tensor) -> None:
        self.frequencies = frequencies(config).to(like.device)
        self._dtype = like.dtype

    def turn(self, positions: Tensor) -> Turn:
        """The turns of positions (int64 [T]); computed in float32, then in the weights' type."""
        angles = positions[:, None, None].to(torch.float32) * self.frequencies
        cos, sin = angles.cos(), angles.sin()
        return Turn(torch.cat((cos, cos), -1).to(self._dtype), torch.cat((-sin, sin), -1).to(self._dtype))


def rotate(heads: Tensor, turn: Turn) -> Tensor:
    """Query or key heads [T, num_heads, head_size], turned."""
    return (heads * turn.cos).addcmul_(heads.roll(heads.shape[-1] // 2, -1), turn.sin)


def frequencies(config: ModelConfig) -> Tensor:
    """Radians a position, float32 [head_size / 2]."""
    if config.rope_theta is None:
        raise ValueError(f"{config.family} has learned positions")
    size = config.head_size
    plain = 1.0 / (config.rope_theta ** (torch.arange(0, size, 2, dtype=torch.float32) / size))
    return plain if config.rope_scaling is None else _stretched(plain, config.rope_scaling)


def _stretched(plain: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3.1's: waves longer than the trained context allows are slowed by a factor, short ones stay, and those
    between are blended (``_compute_llama3_parameters`` of transformers)."""
    turns = scaling.original_max_positions * plain / (2 * math.pi)
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = blend.clamp(0, 1)
    return (1 - blend) * plain / scaling.factor + blend * plain
