from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ecoserve.data import Message, Record
from ecoserve.predictor.text import EARLIER_MESSAGES, MESSAGE_CHARACTERS, clip, head_tail, read_record, read_request

CHAT = (
    Message("system", "Be   brief."),
    Message("user", "What is a cache?"),
    Message("assistant", "A cache keeps things near."),
    Message("user", "And a page?"),
)


def test_a_single_question_reads_the_same_as_text_and_as_message() -> None:
    assert read_request("What is a cache?") == read_request([Message("user", "What is a cache?")])
    assert read_request("What is a cache?").text == "What is a cache?"


def test_the_last_question_stands_first_and_the_context_follows() -> None:
    view = read_request(CHAT)
    assert view.prompt == "And a page?"
    assert view.text.startswith("And a page?\n\n")
    assert view.turn == 1
    assert view.answer_words == (5,)
    assert view.system_characters == len("Be   brief.")
    for part in ("turn 2", "answered in 5 words", "user before: What is a cache?", "system: Be brief."):
        assert part in view.context


def test_text_of_earlier_answers_is_not_read_only_their_length() -> None:
    assert "keeps things" not in read_request(CHAT).text


def test_what_follows_the_last_question_is_context() -> None:
    view = read_request([*CHAT, Message("tool", "a page has 4096 bytes")])
    assert view.prompt == "And a page?"
    assert "tool before: a page has 4096 bytes" in view.context


def test_requests_without_a_user_or_without_anything_are_read_too() -> None:
    assert read_request([Message("system", "Say hello.")]).prompt == "Say hello."
    assert read_request([]).text == ""


def test_long_conversations_stay_short() -> None:
    chat = [Message("user", "why? " * 500), Message("assistant", "because " * 500)] * 200 + [Message("user", "So?")]
    view = read_request(chat)
    assert view.turn == 200
    assert len(view.answer_words) == EARLIER_MESSAGES // 2
    assert len(view.text) < 2000


def test_records_are_read_like_requests_and_answers_are_never_read() -> None:
    record = Record("a", prompt="And a page?", messages=CHAT, response="ANSWER", response_tokens=9, sample_tokens=(1,))
    assert read_record(record) == read_request(CHAT)
    assert read_record(Record("b", prompt="hello", response="ANSWER")) == read_request("hello")
    assert read_record(Record("c", response_tokens=5)) is None


@given(st.text(max_size=200), st.integers(1, 150))
def test_clipping_keeps_head_and_tail(text: str, limit: int) -> None:
    short = clip(text, limit)
    assert len(short) == min(len(text), limit)
    half = limit // 2
    assert short[:half] == text[:half]
    assert half == 0 or short[-half:] == text[-half:]


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 50))
def test_head_and_tail_of_ids(ids: list[int], limit: int) -> None:
    short = head_tail(ids, limit)
    assert len(short) == min(len(ids), limit)
    if len(ids) > limit:
        head = limit - limit // 4
        assert short[:head] == ids[:head]
        assert limit < 4 or short[head:] == ids[-(limit // 4) :]


def test_a_hostile_prompt_is_cut() -> None:
    assert len(read_request("x" * 10_000_000).prompt) == MESSAGE_CHARACTERS
