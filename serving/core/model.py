"""ModelSpec: sizes of a model's weights and KV, and how its layers split over pipeline stages."""

from dataclasses import dataclass

from serving.units import Bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A decoder-only transformer, as far as memory and time go."""

    slug: str
    hidden: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    ffn: int
    vocab: int
    tied: bool
    """Output head shares the embedding's weights."""
    source: str
    gated: bool = False
    """SwiGLU: three FFN matrices instead of two."""
    bytes_per_value: int = 2
    """Of a weight, and of a value in the KV cache: 2 for fp16 and bf16."""
    learned_positions: int = 0
    """Rows of a learned position embedding (OPT)."""
    bias: bool = False
    """Linear layers have a bias (OPT)."""

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.num_heads

    @property
    def kv_width(self) -> int:
        """Width of K, and of V, in one layer."""
        return self.num_kv_heads * self.head_size

    @property
    def kv_bytes_per_layer(self) -> Bytes:
        """Bytes that one token's K and V take in one layer."""
        return 2 * self.kv_width * self.bytes_per_value

    def layer_tensors(self) -> tuple[Bytes, ...]:
        """Bytes of one decoder layer's matrices, each with its bias; norms ride with the first."""
        h, f = self.hidden, self.ffn
        shapes = [(h, h), (self.kv_width, h), (self.kv_width, h), (h, h)]  # q, k, v, o
        shapes += [(f, h), (f, h), (h, f)] if self.gated else [(f, h), (h, f)]
        sizes = [
            float((rows * columns + (rows if self.bias else 0)) * self.bytes_per_value) for rows, columns in shapes
        ]
        norms = 4 * h if self.bias else 2 * h
        sizes[0] += norms * self.bytes_per_value
        return tuple(sizes)

    @property
    def layer_bytes(self) -> Bytes:
        """Bytes of one decoder layer."""
        return sum(self.layer_tensors())

    @property
    def embedding_bytes(self) -> Bytes:
        """Bytes of token and position embeddings."""
        return float((self.vocab + self.learned_positions) * self.hidden * self.bytes_per_value)

    @property
    def head_bytes(self) -> Bytes:
        """Bytes of the output head (the embedding's when tied)."""
        return float(self.vocab * self.hidden * self.bytes_per_value)

    @property
    def weight_bytes(self) -> Bytes:
        """Bytes of the checkpoint."""
        return self.stage_bytes(range(self.num_layers))

    def stage_tensors(self, layers: range) -> tuple[Bytes, ...]:
        """Bytes of each tensor of a pipeline stage: embedding if it has the first layer, its layers, then the head
        if it has the last; a tied head is stored once when one stage has both ends."""
        first, last = layers.start == 0, layers.stop == self.num_layers
        tensors = [self.embedding_bytes] if first else []
        tensors += list(self.layer_tensors()) * len(layers)
        if last and not (self.tied and first):
            tensors.append(self.head_bytes)
        return tuple(tensors)

    def stage_bytes(self, layers: range) -> Bytes:
        """Bytes of a pipeline stage's weights."""
        return sum(self.stage_tensors(layers))

    def split(self, num_stages: int) -> tuple[range, ...]:
        """Contiguous layer ranges per stage: each layer goes to the stage that is lightest so far, ties to the later
        one; the embedding weighs on the first stage, the head on the last (HydraServe artifact, model partitioner)."""
        if not 1 <= num_stages <= self.num_layers:
            raise ValueError(f"{self.slug} has {self.num_layers} layers and cannot make {num_stages} stages")
        weights = [0.0] * num_stages
        weights[0] += self.embedding_bytes
        weights[-1] += self.head_bytes
        counts = [0] * num_stages
        for _ in range(self.num_layers):
            stage = min(range(num_stages), key=lambda s: (weights[s], -s))
            counts[stage] += 1
            weights[stage] += self.layer_bytes
        if 0 in counts:
            raise ValueError(f"{self.slug}: of {num_stages} stages, stage {counts.index(0)} would have no layer")
        starts = [sum(counts[:stage]) for stage in range(num_stages + 1)]
        return tuple(range(starts[stage], starts[stage + 1]) for stage in range(num_stages))
