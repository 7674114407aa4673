"""Make a tiny random Llama with a real tokenizer, for tests, the demo and trying things out without a download:

    .venv/bin/python scripts/tiny_model.py out/tiny-model

The folder serves like any other model (`vllm serve`, `ecoserve serve`, `AutoTokenizer`): 0.85M float32 parameters, a
byte-level BPE vocabulary learned from generated English-like text, a chat template. It says nothing sensible; that is
not what it is for. The same seed makes the same files on every machine with the same library versions.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

VOCABULARY = 4096
CONTEXT = 2048
UNKNOWN, BEGIN, END, USER, ASSISTANT, SYSTEM = "<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"
SPECIAL = (UNKNOWN, BEGIN, END, USER, ASSISTANT, SYSTEM)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

#: the shape, as config.json says it: head size 64, so that vLLM's CPU attention takes it
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": True,
}

_ONSETS = "- b br c ch d dr f fl g gr h j k l m n p pl pr qu r s sh sl st str t th tr v w wh y z".replace("-", "")
_VOWELS = "a e i o u ai ea ee io oo ou"
_CODAS = "- - b ck d l ll m n nd ng nt p r rd s ss st t x".replace("-", "")
_COMMON = """
the of and to a in is that for it as was with be by on not he his but at are this have from or had an they which one you
were all her she there would their we him been has when who will no more if out so up said what its about than write
explain list describe summarize translate python code function return why how does between difference give example short
long story poem email answer question following sentence paragraph words number data model system time
"""


def make_tiny_model(out: Path, *, seed: int = 0) -> Path:
    """Write the model to the folder ``out`` and return it; a folder that is there already is replaced.

    The folder appears whole or not at all.
    """
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        _write_tokenizer(draft, seed)
        _write_weights(draft, seed)
        draft.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        os.replace(draft, out)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return out


def make_config_only(out: Path) -> Path:
    """Write only the config.json of the same model: enough for vLLM's scheduler, which never loads weights."""
    out.mkdir(parents=True, exist_ok=True)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float32", "hidden_act": "silu"}
    ids = {"bos_token_id": SPECIAL.index(BEGIN), "eos_token_id": SPECIAL.index(END), "pad_token_id": SPECIAL.index(END)}
    (out / "config.json").write_text(json.dumps({**config, **SHAPE, **ids}, indent=2))
    return out


def corpus(seed: int, lines: int = 6000) -> Iterator[str]:
    """Sentences of common words and made-up ones, with the frequencies of a language (a word's rank counts)."""
    chance = random.Random(seed)
    onsets, vowels, codas = (parts.split(" ") for parts in (_ONSETS, _VOWELS, _CODAS))
    made_up = {
        "".join(
            chance.choice(onsets) + chance.choice(vowels) + chance.choice(codas)
            for _ in range(chance.choice((1, 2, 2, 3)))
        )
        for _ in range(9000)
    }
    words = [*_COMMON.split(), *sorted(made_up, key=lambda word: (len(word), word))]
    weights = [1 / (rank + 3) for rank in range(len(words))]
    for _ in range(lines):
        sentence = chance.choices(words, weights, k=chance.randint(4, 24))
        if chance.random() < 0.2:
            sentence.insert(chance.randrange(len(sentence)), str(chance.randint(0, 9999)))
        yield " ".join(sentence).capitalize() + chance.choice((".", ".", "?", "!", ":\n"))


def _write_tokenizer(folder: Path, seed: int) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus(seed), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        unk_token=UNKNOWN,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=END,
        model_max_length=CONTEXT,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    if len(tokenizer) != VOCABULARY:
        raise RuntimeError(f"the corpus gave {len(tokenizer)} tokens, not {VOCABULARY}")


def _write_weights(folder: Path, seed: int) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    end, begin = SPECIAL.index(END), SPECIAL.index(BEGIN)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**SHAPE, bos_token_id=begin, eos_token_id=end, pad_token_id=end))
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model.to(torch.float32).save_pretrained(folder)
    finally:
        if bars:
            logging.enable_progress_bar()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make a tiny random Llama with a tokenizer and a chat template.")
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(make_tiny_model(arguments.out, seed=arguments.seed))
