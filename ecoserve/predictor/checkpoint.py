"""Checkpoints on disk: config.json, calibration.json, the backend's files, and a model card in README.md.

A checkpoint is written beside its place and renamed. config.json, which holds the SHA-256 of every other file and of
itself, comes last. Reading checks all of them; anything wrong is one CheckpointError. JSON, safetensors and LightGBM's
text only: nothing in a checkpoint is executed or unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import ValidationError

from ecoserve.errors import CheckpointError, EcoServeError, RunError
from ecoserve.predictor.calibration import Calibration
from ecoserve.predictor.config import FORMAT, FORMAT_VERSION, PredictorConfig

CONFIG, CALIBRATION, CARD = "config.json", "calibration.json", "README.md"
#: Keys of config.json that are about the files, not about the predictor.
_FILES, _SELF = "files", "sha256"
_RETRAIN = "train it again, or fetch it again"

#: Rows of the card's table: key of an evaluation, what stands before it, and its format.
_ROWS = (
    ("mae_tokens", "mean absolute error (tokens)", "{:.1f}"),
    ("within_50", "within 50 tokens", "{:.1%}"),
    ("within_100", "within 100 tokens", "{:.1%}"),
    ("kendall_tau", "Kendall's tau-b", "{:.3f}"),
    ("bin_accuracy", "likeliest bin holds the length", "{:.1%}"),
    ("pinball_loss", "pinball loss (tokens)", "{:.2f}"),
    ("crps", "CRPS (tokens)", "{:.2f}"),
    ("ece", "expected calibration error", "{:.3f}"),
    ("coverage_50", "covered by the 0.50 quantile", "{:.1%}"),
    ("coverage_80", "covered by the 0.80 quantile", "{:.1%}"),
    ("coverage_90", "covered by the 0.90 quantile", "{:.1%}"),
    ("coverage_95", "covered by the 0.95 quantile", "{:.1%}"),
    ("latency_p50_ms", "latency of one request, p50 (ms)", "{:.1f}"),
    ("latency_p99_ms", "latency of one request, p99 (ms)", "{:.1f}"),
)


def save(directory: Path, config: PredictorConfig, calibration: Calibration, write: Callable[[Path], None]) -> Path:
    """Write a checkpoint into ``directory``; ``write`` writes the backend's files into an empty folder.

    A ``directory`` with other things in it is a CheckpointError, one that cannot be written a RunError.
    """
    check_place(directory)
    fresh = not directory.exists()
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        stage = (directory.parent if fresh else directory) / f".saving-{uuid4().hex}"
        stage.mkdir()
    except OSError as error:
        raise RunError(f"cannot write here: {error.strerror or error}", where=str(directory)) from error
    try:
        write(stage)
        (stage / CALIBRATION).write_text(calibration.model_dump_json(indent=2) + "\n", encoding="utf-8")
        # Cards are for people, who may edit them: they carry no hash.
        vouched = sorted(p for p in stage.rglob("*") if p.is_file() and p.name != CARD)
        hashes = {str(p.relative_to(stage).as_posix()): _sha256(p) for p in vouched}
        content = {**config.model_dump(mode="json"), _FILES: hashes}
        text = json.dumps({**content, _SELF: _digest(content)}, indent=2) + "\n"
        (stage / CONFIG).write_text(text, encoding="utf-8")
        (stage / CARD).write_text(model_card(config, calibration), encoding="utf-8")
        mode = (stage / CONFIG).stat().st_mode
        for path in filter(Path.is_file, stage.rglob("*")):
            # Libraries may write private files; all get the umask's mode.
            path.chmod(mode)
            with path.open("rb") as file:
                os.fsync(file.fileno())
        if fresh:
            stage.rename(directory)
        else:
            # The config, which names and vouches for all others, comes last.
            for path in sorted(stage.rglob("*"), key=lambda p: p == stage / CONFIG):
                place = directory / path.relative_to(stage)
                if path.is_file():
                    place.parent.mkdir(exist_ok=True)
                    path.replace(place)
        return directory
    except OSError as error:
        raise RunError(f"cannot write the checkpoint: {error.strerror or error}", where=str(directory)) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def check_place(directory: Path) -> None:
    """Refuse, with a CheckpointError, a file in the place of ``directory`` and a folder with other things in it."""
    place = next((p for p in (directory, *directory.parents) if p.exists()), directory)
    if place.exists() and not place.is_dir():
        raise CheckpointError("is a file", where=str(place), fix="give a folder for the checkpoint")
    if not directory.exists():
        return
    names = [p.name for p in directory.iterdir() if not p.name.startswith(".")]
    with suppress(CheckpointError):
        if not names or _json(directory / CONFIG).get("format") == FORMAT:
            return
    what = f"holds other files ({', '.join(sorted(names)[:3])}) and no checkpoint of ecoserve"
    raise CheckpointError(what, where=str(directory), fix="give an empty or a new folder")


def read(folder: Path) -> tuple[PredictorConfig, Calibration]:
    """Read and check everything in a checkpoint but the backend's files, whose hashes alone are checked."""
    content = _json(folder / CONFIG)
    if content.get("format") != FORMAT:
        raise CheckpointError("is not the config of a length predictor", where=str(folder / CONFIG))
    if content.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"checkpoint format {content.get('format_version')!r}, this ecoserve reads {FORMAT_VERSION}",
            where=str(folder / CONFIG),
            fix="use the ecoserve that wrote it, or train again",
        )
    stated = content.pop(_SELF, None)
    if stated != _digest(content):
        raise CheckpointError("was changed after it was written", where=str(folder / CONFIG), fix=_RETRAIN)
    hashes = content.pop(_FILES, None)
    if not isinstance(hashes, dict) or CALIBRATION not in hashes:
        raise CheckpointError("names no files", where=str(folder / CONFIG), fix=_RETRAIN)
    for name, expected in hashes.items():
        path = folder / name
        if ".." in path.parts or Path(name).is_absolute() or not path.is_file():
            raise CheckpointError("is missing", where=str(path), fix=_RETRAIN)
        if _sha256(path) != expected:
            raise CheckpointError("is damaged or was changed (its SHA-256 differs)", where=str(path), fix=_RETRAIN)
    try:
        config = PredictorConfig.model_validate(content)
        calibration = Calibration.model_validate(_json(folder / CALIBRATION))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(p) for p in first["loc"]) or "config"
        raise CheckpointError(f"{place}: {first['msg']}", where=str(folder), fix=_RETRAIN) from error
    return config, calibration


def files_of(folder: Path) -> list[str]:
    """Names of a checkpoint's files but its card, each of them checked (see :func:`read`)."""
    read(folder)
    return [*sorted(_json(folder / CONFIG)[_FILES]), CONFIG]


def identity(folder: Path) -> str:
    """The SHA-256 that a checkpoint's config states of itself, and so of every file."""
    return str(_json(folder / CONFIG)[_SELF])


def is_of_run(folder: Path, run: str) -> bool:
    """Whether ``folder`` holds the whole checkpoint of the training with this fingerprint."""
    try:
        return read(folder)[0].run == run
    except CheckpointError:
        return False


@contextmanager
def damage_of(folder: Path) -> Iterator[None]:
    """Turn any error that a library raises over a backend's files into one CheckpointError."""
    try:
        yield
    except EcoServeError:
        raise
    except Exception as error:
        line = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"cannot be loaded: {line}", where=str(folder), fix=_RETRAIN) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        fix = "give the folder that ecoserve train-predictor wrote"
        raise CheckpointError("is missing: this is no checkpoint", where=str(path), fix=fix) from error
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror}", where=str(path)) from error
    except ValueError as error:
        raise CheckpointError("is not valid JSON", where=str(path), fix=_RETRAIN) from error
    if not isinstance(content, dict):
        raise CheckpointError("is not a JSON object", where=str(path), fix=_RETRAIN)
    return content


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_card(config: PredictorConfig, calibration: Calibration) -> str:
    """The card in Markdown, with the metadata block that model hubs read."""
    from jinja2 import Environment, StrictUndefined

    names = {"support": "the largest length seen, or set, in training", "max_tokens": "max_tokens"}
    heads = [f"{name.replace('_', ' ')}, {int(m['rows']):,} rows" for name, m in config.metrics.items()]
    lines = [["", *heads], ["---", *["---:"] * len(heads)]]
    # A checkpoint of an earlier version may lack a key.
    lines += [
        [label, *(shape.format(m[key]) if key in m else "-" for m in config.metrics.values())]
        for key, label, shape in _ROWS
        if any(key in m for m in config.metrics.values())
    ]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines) if heads else ""
    text = Path(__file__).with_name("model_card.md.j2").read_text(encoding="utf-8")
    template = Environment(undefined=StrictUndefined, trim_blocks=True, autoescape=False).from_string(text)
    return template.render(c=config, k=calibration, table=table, closed=names.get(config.closed_by, config.closed_by))
