"""``ecoserve push-predictor``: a checkpoint to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ecoserve.cli.common import JsonOption, QuietOption, emit_json, stderr_console


def command(
    checkpoint: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the predictor.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Model repository on the hub.")],
    private: Annotated[bool, typer.Option("--private", help="If the repository is new: for its owner only.")] = False,
    message: Annotated[str | None, typer.Option("--message", help="Message of the commit.")] = None,
    json: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Publish a predictor: its weights, config, calibration, tokenizer and model card, in one commit.

    The token is that of huggingface_hub: HF_TOKEN, or what `hf auth login` has stored.
    """
    from ecoserve.predictor.hub import push

    address, files = push(checkpoint, repository, private=private, message=message)
    stderr_console(quiet).print(f"{checkpoint} is at {address} ({', '.join(files)})")
    emit_json({"repository": repository, "address": address, "files": files}, json)
