"""The model that tests and the demo run on: the same every time, whole or not there, and served by a real engine."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import tiny_model as script


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_the_same_seed_makes_the_same_files(tiny_model: Path, tmp_path: Path) -> None:
    assert digests(script.make_tiny_model(tmp_path / "again")) == digests(tiny_model)
    other = digests(script.make_tiny_model(tmp_path / "again", seed=1))
    assert other["model.safetensors"] != digests(tiny_model)["model.safetensors"]
    assert other["tokenizer.json"] != digests(tiny_model)["tokenizer.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("x")

    def fails(folder: Path, seed: int) -> None:
        (folder / "model.safetensors").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "_write_tokenizer", lambda folder, seed: None)
    monkeypatch.setattr(script, "_write_weights", fails)
    with pytest.raises(KeyboardInterrupt):
        script.make_tiny_model(tmp_path / "model")
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["model", "model/old"]


def test_the_tokenizer_knows_chat_and_gives_text_back(tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Naïve 東京 – write a poem!"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == "<s><|system|>Be brief.</s><|user|>Naïve 東京 – write a poem!</s><|assistant|>"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert {tokenizer.bos_token_id, tokenizer.eos_token_id} <= set(ids)
    english = "Please explain the difference between a list and a function in a short example."
    assert len(tokenizer(english).input_ids) < len(english) / 2, "not one token per character or two"


def test_the_config_alone_has_the_shape_of_the_model(model_config_dir: Path, tiny_model: Path) -> None:
    assert [path.name for path in model_config_dir.iterdir()] == ["config.json"]
    alone, whole = (json.loads((folder / "config.json").read_text()) for folder in (model_config_dir, tiny_model))
    shared = set(alone) & set(whole)
    assert {key: alone[key] for key in shared} == {key: whole[key] for key in shared}
    assert {"vocab_size", "num_hidden_layers", "head_dim", "architectures", "eos_token_id"} <= shared


@pytest.mark.engine
def test_a_real_engine_serves_it(tiny_model: Path) -> None:
    from vllm import LLM, SamplingParams

    engine = LLM(
        str(tiny_model),
        dtype="float32",
        enforce_eager=True,
        max_model_len=256,
        block_size=32,
        num_gpu_blocks_override=64,
        max_num_seqs=8,
        distributed_executor_backend="uni",
        disable_log_stats=True,
    )
    sampling = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    first, second = (
        [list(answer.outputs[0].token_ids) for answer in engine.generate(prompts, sampling, use_tqdm=False)]
        for prompts in (["Write a short story.", "Why?"], ["Write a short story.", "Why?"])
    )
    assert first == second
    assert [len(tokens) for tokens in first] == [12, 12]
