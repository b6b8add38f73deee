"""MODELS: the architectures that the papers use, in fp16.

Every number comes from the model's published ``config.json`` (Hugging Face id in ``source``); parameter
counts follow from them and are checked against the published counts in the tests.
"""

from serving.core.model import ModelSpec


def _opt(slug: str, hidden: int, num_layers: int, num_heads: int) -> ModelSpec:
    return ModelSpec(
        slug=slug,
        hidden=hidden,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        ffn=4 * hidden,
        vocab=50272,
        tied=True,
        learned_positions=2050,
        bias=True,
        source=f"config.json of facebook/{slug}",
    )


def _llama(
    slug: str, *, hidden: int, num_layers: int, num_kv_heads: int, ffn: int, vocab: int, source: str
) -> ModelSpec:
    return ModelSpec(
        slug=slug,
        hidden=hidden,
        num_layers=num_layers,
        num_heads=hidden // 128,
        num_kv_heads=num_kv_heads,
        ffn=ffn,
        vocab=vocab,
        tied=False,
        gated=True,
        source=f"config.json of {source}",
    )


MODELS: dict[str, ModelSpec] = {
    model.slug: model
    for model in (
        _opt("opt-2.7b", 2560, 32, 32),
        _opt("opt-6.7b", 4096, 32, 32),
        _opt("opt-13b", 5120, 40, 40),
        _llama(
            "llama2-7b", hidden=4096, num_layers=32, num_kv_heads=32, ffn=11008, vocab=32000,
            source="meta-llama/Llama-2-7b-chat-hf",
        ),
        _llama(
            "llama2-13b", hidden=5120, num_layers=40, num_kv_heads=40, ffn=13824, vocab=32000,
            source="meta-llama/Llama-2-13b-chat-hf",
        ),
        _llama(
            "llama3-8b", hidden=4096, num_layers=32, num_kv_heads=8, ffn=14336, vocab=128256,
            source="meta-llama/Meta-Llama-3-8B-Instruct",
        ),
        ModelSpec(
            slug="smollm2-135m", hidden=576, num_layers=30, num_heads=9, num_kv_heads=3, ffn=1536, vocab=49152,
            tied=True, gated=True, source="config.json of HuggingFaceTB/SmolLM2-135M-Instruct",
        ),
        ModelSpec(
            slug="falcon-7b", hidden=4544, num_layers=32, num_heads=71, num_kv_heads=1, ffn=18176, vocab=65024,
            tied=True, source="config.json of tiiuae/falcon-7b",
        ),
        _llama(
            "llama-7b", hidden=4096, num_layers=32, num_kv_heads=32, ffn=11008, vocab=32000,
            source="huggyllama/llama-7b (LLaMA, Table 2: 6.7B)",
        ),
        _llama(
            "llama-30b", hidden=6656, num_layers=60, num_kv_heads=52, ffn=17920, vocab=32000,
            source="huggyllama/llama-30b (LLaMA, Table 2: 32.5B)",
        ),
    )
}  # fmt: skip
