"""Token lengths are those of the tokenizer, EOS and chat template included."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ecoserve.data import Message, load_trace, measuring
from ecoserve.data.measuring import TokenCounter, load_tokenizer
from ecoserve.errors import TraceError

Write = Callable[..., Path]

CHATML = (
    "{% for m in messages %}<s>{{ m.role }} {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant {% endif %}"
)


def make(folder: Path, template: str | None = None, special: bool = False) -> Path:
    """A tokenizer of one token a word, which cuts off after four words unless that is switched off."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "<s>": 1, "</s>": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=4)
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            "<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", bos_token="<s>", eos_token="</s>")
    fast.chat_template = template
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("tokenizers") / "words")


def test_each_word_is_a_token_and_an_answer_ends_with_one_more(write: Write, words: Path) -> None:
    data = [
        {"instruction": "one two three", "output": "a b c d e f g"},
        {"instruction": "one", "output": "a b", "finish_reason": "length"},
    ]
    trace = load_trace(write(data), tokenizer=str(words))
    assert [(r.prompt_tokens, r.response_tokens) for r in trace.records] == [(3, 8), (1, 2)]
    assert trace.length_source == trace.prompt_length_source == f"tokenizer:{words}"


def test_a_tokenizer_comes_before_the_traces_own_counts(write: Write, words: Path) -> None:
    data = [{"instruction": "one two", "output": "a b", "output_tokens": 40, "prompt_tokens": 50}]
    (record,) = load_trace(write(data), tokenizer=str(words)).records
    assert (record.prompt_tokens, record.response_tokens) == (2, 3)


def test_a_field_comes_before_the_tokenizer(write: Write, words: Path) -> None:
    data = [{"instruction": "one two", "output": "a b", "n": 40}]
    trace = load_trace(write(data), tokenizer=str(words), length_field="n")
    assert (trace.length_source, trace.prompt_length_source) == ("field:n", f"tokenizer:{words}")
    assert (trace.records[0].prompt_tokens, trace.records[0].response_tokens) == (2, 40)


def test_an_answer_without_text_cannot_be_counted_among_others(write: Write, words: Path) -> None:
    data = [
        {"conversation": "a", "turn": 0, "prompt": "p q", "response": "a b"},
        {"conversation": "b", "turn": 0, "prompt": "p q", "response_tokens": 9},
        {"conversation": "c", "turn": 0, "response_tokens": 9, "prompt_tokens": 5, "response": "x"},
    ]
    trace = load_trace(write(data, "t.jsonl"), tokenizer=str(words))
    assert trace.report.dropped == {"no answer text to count": 1}
    assert [(r.prompt_tokens, r.response_tokens) for r in trace.records] == [(2, 3), (5, 2)]


def test_a_trace_of_lengths_keeps_them(write: Write, words: Path) -> None:
    data = [{"conversation": str(i), "turn": 0, "response_tokens": 9, "prompt_tokens": 5} for i in range(3)]
    trace = load_trace(write(data, "t.jsonl"), tokenizer=str(words))
    assert trace.length_source == "trace"
    assert [r.response_tokens for r in trace.records] == [9, 9, 9]


def test_many_texts_are_counted_in_their_order(words: Path) -> None:
    texts = ["w " * (i % 37 + 1) for i in range(2000)]
    assert TokenCounter(str(words)).count(texts) == [i % 37 + 1 for i in range(2000)]


def test_a_tokenizer_without_a_fast_one_counts_the_same(words: Path) -> None:
    counter = TokenCounter(str(words))
    texts = ["a b c d e f", "a", "a b c"]
    fast = counter.count(texts)
    counter._fast = None
    assert counter.count(texts) == fast == [6, 1, 3]


CHATS = [
    (Message("user", "a b c"),),
    (Message("system", "be kind"), Message("user", "a"), Message("assistant", "b c"), Message("user", "d e")),
]


def test_contexts_count_what_the_chat_template_adds(tmp_path: Path) -> None:
    counter = TokenCounter(str(make(tmp_path / "chat", CHATML)))
    tokenizer = load_tokenizer(str(tmp_path / "chat"))
    whole = [
        tokenizer.apply_chat_template(
            [{"role": m.role, "content": m.content} for m in chat], tokenize=False, add_generation_prompt=True
        )
        for chat in CHATS
    ]
    assert counter.count_contexts(CHATS) == [
        len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in whole
    ]


def test_contexts_count_special_tokens_where_there_is_no_template(tmp_path: Path) -> None:
    assert TokenCounter(str(make(tmp_path / "bert", special=True))).count_contexts(CHATS) == [5, 9]


def test_a_template_that_fails_is_done_without(tmp_path: Path) -> None:
    broken = make(tmp_path / "broken", "{{ raise_exception('only pictures') }}")
    assert TokenCounter(str(broken)).count_contexts(CHATS) == [3, 7]


def test_a_tokenizer_that_is_not_there_is_refused(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_DATASETS_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    path = write([{"instruction": "a", "output": "b"}])
    with pytest.raises(TraceError, match="no such folder"):
        load_trace(path, tokenizer=str(tmp_path / "none"))
    with pytest.raises(TraceError, match=r"tokenizer owner/none: the hub at http://127.0.0.1:9 cannot be reached"):
        load_trace(path, tokenizer="owner/none")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(TraceError, match="HF_HUB_OFFLINE is set"):
        load_trace(path, tokenizer="owner/none")


def test_a_folder_that_holds_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"cannot be loaded \(.*tokenizer\.json"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    with pytest.raises(TraceError, match="cannot be loaded"):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_in_the_hubs_cache_needs_no_hub(words: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    real = transformers.AutoTokenizer.from_pretrained
    asked: list[tuple[str, Any]] = []

    def cached(name: str, **kwargs: Any) -> Any:
        asked.append((name, kwargs))
        return real(str(words))

    monkeypatch.setattr(measuring, "_is_cached", lambda name: True)
    monkeypatch.setattr(measuring, "require_hub", lambda *a, **k: pytest.fail("asked the hub"))
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", cached)
    assert TokenCounter("owner/name").count(["a b"]) == [2]
    assert asked == [("owner/name", {"local_files_only": True})]
