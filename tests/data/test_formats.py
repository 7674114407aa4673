"""Each format turns its rows into the right exchanges, and a file is recognised by what is in it."""

from __future__ import annotations

from typing import Any

import pytest

from ecoserve.data import Message, load_trace
from ecoserve.data.formats import FORMATS, Exchange, Reject, detect, get_format
from ecoserve.errors import TraceError


def read(name: str, row: dict[str, Any]) -> list[Exchange | Reject]:
    return list(get_format(name).read(row, 7))


def only(name: str, row: dict[str, Any]) -> Exchange:
    (item,) = read(name, row)
    assert isinstance(item, Exchange)
    return item


def talk(*turns: tuple[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": "t", "conversations": [{"from": who, "value": what} for who, what in turns], **more}


# -- Alpaca ------------------------------------------------------------------------------------------


def test_an_alpaca_prompt_is_the_instruction_with_its_input() -> None:
    row = {"instruction": "Add them.", "input": "2, 3", "output": "5", "split": "dev", "generator": "m"}
    item = only("alpaca", row)
    assert item.record.prompt == "Add them.\n2, 3"
    assert item.record.messages == ()
    assert item.record.chat() == (Message("user", "Add them.\n2, 3"),)
    assert (item.record.conversation, item.record.turn) == ("row-7", 0)
    assert (item.record.split, item.record.model) == ("dev", "m")
    assert item.answer == "5"
    assert item.fields is row


@pytest.mark.parametrize("extra", [None, "", "  "])
def test_an_alpaca_row_without_input_asks_the_instruction_alone(extra: str | None) -> None:
    assert only("alpaca", {"instruction": "Sing.", "input": extra, "output": "La"}).record.prompt == "Sing."


@pytest.mark.parametrize(
    ("instruction", "extra", "reason"),
    [
        (None, "", "no prompt"),
        ("", "", "empty prompt"),
        (" \n", "", "empty prompt"),
        (5, "", "prompt is not text"),
        (["a"], "", "prompt is not text"),
        ("a", 5, "input is not text"),
        ("a \ud83d", "", "prompt is not valid Unicode"),
    ],
)
def test_an_alpaca_row_without_a_prompt_is_rejected(instruction: Any, extra: Any, reason: str) -> None:
    assert read("alpaca", {"instruction": instruction, "input": extra, "output": "x"}) == [Reject(reason)]


def test_an_alpaca_row_may_count_its_tokens() -> None:
    row = {"instruction": "a", "output": "b", "output_tokens": 12.0, "prompt_tokens": 3, "finish_reason": "length"}
    record = only("alpaca", row).record
    assert (record.response_tokens, record.prompt_tokens, record.censored) == (12, 3, True)


# -- ShareGPT ----------------------------------------------------------------------------------------


def test_each_answer_of_a_conversation_is_an_exchange_with_all_before_it() -> None:
    first, second = read(
        "sharegpt", talk(("system", "Be kind."), ("human", "Q1"), ("gpt", "A1"), ("user", "Q2"), ("chatgpt", "A2"))
    )
    assert isinstance(first, Exchange)
    assert isinstance(second, Exchange)
    assert (first.record.conversation, first.record.turn, first.record.prompt, first.answer) == ("t", 0, "Q1", "A1")
    assert first.record.messages == (Message("system", "Be kind."), Message("user", "Q1"))
    assert (second.record.turn, second.record.prompt, second.answer) == (1, "Q2", "A2")
    assert second.record.messages == (
        Message("system", "Be kind."),
        Message("user", "Q1"),
        Message("assistant", "A1"),
        Message("user", "Q2"),
    )
    assert first.notes == second.notes == ()


@pytest.mark.parametrize("name", ["gpt", "chatgpt", "assistant", "bing", "bard", "GPT", "Assistant", "model"])
def test_answers_go_by_many_names(name: str) -> None:
    assert only("sharegpt", talk(("human", "Q"), (name, "A"))).answer == "A"


def test_a_conversation_that_starts_with_an_answer_keeps_it_as_context() -> None:
    item = only("sharegpt", talk(("gpt", "Welcome"), ("human", "Q"), ("gpt", "A")))
    assert item.record.messages == (Message("assistant", "Welcome"), Message("user", "Q"))
    assert item.record.turn == 0
    assert item.notes == ("conversation starts with an answer",)


def test_an_answer_after_an_answer_is_context_only() -> None:
    items = read("sharegpt", talk(("human", "Q"), ("gpt", "A"), ("gpt", "B"), ("human", "R"), ("gpt", "C")))
    assert [i.answer for i in items if isinstance(i, Exchange)] == ["A", "C"]
    last = items[-1]
    assert isinstance(last, Exchange)
    assert [m.content for m in last.record.messages] == ["Q", "A", "B", "R"]


def test_a_question_in_two_messages_is_answered_once() -> None:
    item = only("sharegpt", talk(("human", "One thing:"), ("human", "why?"), ("gpt", "So.")))
    assert item.record.prompt == "why?"
    assert len(item.record.messages) == 2


def test_an_unanswered_question_makes_no_exchange() -> None:
    assert read("sharegpt", talk(("gpt", "Hi"), ("human", "Q"))) == [Reject("no question with an answer")]


def test_other_roles_stay_in_the_context() -> None:
    items = read(
        "sharegpt", talk(("human", "Q"), ("gpt", "call f"), ("Function_Response", "7"), ("human", "R"), ("gpt", "A"))
    )
    last = items[-1]
    assert isinstance(last, Exchange)
    assert last.record.messages[2] == Message("function_response", "7")


def test_an_empty_question_is_rejected_and_keeps_its_turn() -> None:
    items = read("sharegpt", talk(("human", ""), ("gpt", "A"), ("human", "Q"), ("gpt", "B")))
    assert items[0] == Reject("empty prompt")
    assert isinstance(items[1], Exchange)
    assert items[1].record.turn == 1
    assert [m.content for m in items[1].record.messages] == ["A", "Q"]


@pytest.mark.parametrize("broken", [5, ["a"], None, "lone \ud83d"])
def test_a_message_that_is_no_text_spoils_what_comes_after_it(broken: Any) -> None:
    items = read("sharegpt", talk(("human", "Q"), ("gpt", broken), ("human", "R"), ("gpt", "B")))
    assert isinstance(items[0], Exchange)
    assert items[0].answer == broken
    assert items[1] == Reject("context is not text")


def test_a_question_that_is_no_text_is_rejected_as_such() -> None:
    assert read("sharegpt", talk(("human", 5), ("gpt", "A"))) == [Reject("prompt is not text")]


def test_a_turn_that_is_no_object_breaks_the_context() -> None:
    row = talk(("human", "Q"), ("gpt", "A"))
    row["conversations"].insert(0, "oops")
    assert read("sharegpt", row) == [Reject("context is not text")]


@pytest.mark.parametrize(
    ("conversations", "reason"),
    [(None, "no conversation"), ([], "no conversation"), ("text", "conversation is not a list")],
)
def test_a_row_without_conversation_is_rejected(conversations: Any, reason: str) -> None:
    assert read("sharegpt", {"id": "x", "conversations": conversations}) == [Reject(reason)]


def test_a_conversation_without_id_is_named_by_its_row() -> None:
    row = talk(("human", "Q"), ("gpt", "A"))
    del row["id"]
    assert only("sharegpt", row).record.conversation == "row-7"
    assert only("sharegpt", {**row, "id": 12}).record.conversation == "12"


def test_role_and_content_are_understood_too() -> None:
    row = {"id": "x", "conversations": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}
    assert get_format("sharegpt").matches(row)
    assert only("sharegpt", row).record.prompt == "Q"


def test_model_and_counts_are_taken_from_the_answer() -> None:
    row = talk(("human", "Q"), ("gpt", "A"), model="m1", split="train")
    row["conversations"][1] |= {"tokens": 9, "finish_reason": "length", "model": "m2"}
    item = only("sharegpt", row)
    record = item.record
    assert (record.response_tokens, record.censored, record.model, record.split) == (9, True, "m2", "train")
    # Beside the message's own fields, those of the row: it has one answer only.
    assert dict(item.fields) == {**row, **row["conversations"][1]}


# -- recognising --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"instruction": "a", "output": "b"}, "alpaca"),
        ({"instruction": "a", "input": None, "output": None}, "alpaca"),
        ({"id": "x", "conversations": [{"from": "human", "value": "a"}]}, "sharegpt"),
        ({"conversations": []}, "sharegpt"),
        ({"conversation": "c", "turn": 0, "response_tokens": 4}, "records"),
        ({"ecoserve_trace": 1}, "records"),
    ],
)
def test_a_row_is_known_by_its_fields(row: dict[str, Any], name: str) -> None:
    assert detect([row], "f").name == name


def test_most_of_the_first_rows_decide() -> None:
    good: dict[str, Any] = {"id": "x", "conversations": [{"from": "human", "value": "a"}]}
    assert detect(["text", {"id": "y", "conversations": "broken"}, good], "f").name == "sharegpt"


@pytest.mark.parametrize(
    ("rows", "seen"),
    [
        ([{"text": "a", "n": 5, "list": [1, 2]}], r"text \(str\), n \(int\), list \(list of 2\)"),
        ([5], "no objects"),
        ([{}], "no fields"),
    ],
)
def test_an_unknown_format_says_what_was_seen_and_what_is_known(rows: list[Any], seen: str) -> None:
    with pytest.raises(TraceError, match=seen) as caught:
        detect(rows, "some/file")
    for form in FORMATS:
        assert form.name in str(caught.value)
    assert "--format plain --length-field NAME" in str(caught.value)
    assert str(caught.value).startswith("some/file: ")


def test_a_format_can_be_named_but_not_invented(write: Any) -> None:
    path = write([{"instruction": "a", "output": "b"}])
    assert load_trace(path, format="alpaca").format == "alpaca"
    with pytest.raises(TraceError, match="auto, records, sharegpt, claude-code, arena, openai, chat"):
        load_trace(path, format="alpaka")
    with pytest.raises(TraceError, match=r"no usable record.*1 no conversation.*sharegpt needs id"):
        load_trace(path, format="sharegpt")
