"""Small traces, a tiny encoder made on the spot, and one trained predictor of each kind for all tests here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from ecoserve.cli.main import COMMANDS
from ecoserve.data import Trace, save_trace, synthetic_trace
from ecoserve.errors import EcoServeError
from ecoserve.predictor import BoostingSettings, EncoderSettings, LengthPredictor, train_predictor

OneThread = Callable[[], AbstractContextManager[None]]


@pytest.fixture(autouse=True)
def _environment_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands set this for their own process, which here is that of all tests."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session")
def call() -> Callable[..., Any]:
    """Runs a command by its name; its errors are raised as the command line's guard would get them."""

    commands = {entry.name.replace("-", "_"): entry for entry in COMMANDS}

    def run(name: str, *arguments: str | Path, text: str | None = None) -> Any:
        app = typer.Typer()
        app.command()(commands[name].load())
        result = CliRunner().invoke(app, [str(a) for a in arguments], input=text)
        if isinstance(result.exception, EcoServeError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result

    return run


@pytest.fixture(scope="session")
def trace_file(trace: Trace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("traces") / "trace.jsonl"
    save_trace(trace, path)
    return path


@pytest.fixture(scope="session")
def trace() -> Trace:
    return synthetic_trace(900, seed=0)


@pytest.fixture(scope="session")
def boosted(trace: Trace, tmp_path_factory: pytest.TempPathFactory) -> LengthPredictor:
    folder = tmp_path_factory.mktemp("predictors") / "lightgbm"
    return train_predictor(trace, backend="lightgbm", output_dir=folder, settings=BoostingSettings(rounds=40))


@pytest.fixture(scope="session")
def boosted_dir(boosted: LengthPredictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return boosted.save_pretrained(tmp_path_factory.mktemp("saved") / "lightgbm")


@pytest.fixture(scope="session")
def tiny_encoder(trace: Trace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a downloaded encoder's: a random two-layer BERT that knows the words of the synthetic trace."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("encoders") / "tiny"
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(
        [r.prompt or "" for r in trace.records], trainers.WordLevelTrainer(special_tokens=marks, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    # As sentence-transformers' own files have it: the wrapper must not depend on it.
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16)
    torch.manual_seed(0)
    model = BertModel(
        BertConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=96,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def tiny_settings(tiny_encoder: Path) -> EncoderSettings:
    return EncoderSettings(
        encoder=str(tiny_encoder), epochs=3, batch_size=16, body_lr=3e-3, head_lr=1e-2, max_length=48
    )


@pytest.fixture(scope="session")
def one_thread() -> OneThread:
    """Torch on one thread: a network this small is slower on two, and far slower where others are busy too."""
    import torch

    @contextmanager
    def hold() -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    return hold


@pytest.fixture(scope="session")
def encoded(
    trace: Trace, tiny_settings: EncoderSettings, one_thread: OneThread, tmp_path_factory: pytest.TempPathFactory
) -> LengthPredictor:
    folder = tmp_path_factory.mktemp("predictors") / "encoder"
    with one_thread():
        return train_predictor(trace, backend="encoder", output_dir=folder, settings=tiny_settings)


@pytest.fixture(params=["boosted", "encoded"])
def predictor(request: pytest.FixtureRequest) -> LengthPredictor:
    """Each backend in turn."""
    trained: LengthPredictor = request.getfixturevalue(request.param)
    return trained
