"""Model outputs: answers of several models to one prompt belong together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ecoserve.data import load_trace, split_trace
from ecoserve.data.formats import Exchange, Reject, detect

Read = Callable[[dict[str, Any]], list[Exchange | Reject]]


def row(prompt: str, model: str, answer: str = "Yes.", **more: Any) -> dict[str, Any]:
    return {"instruction": prompt, "output": answer, "generator": model, "dataset": "koala", **more}


def test_answers_to_one_prompt_are_one_conversations(write: Any) -> None:
    trace = load_trace(write([row(p, m) for m in ("m1", "m2", "m3") for p in ("Is it so?", "And that?")]))
    assert trace.format == "model_outputs"
    names = [r.conversation for r in trace.records]
    assert names[:2] == names[2:4] == names[4:]
    assert len(set(names)) == 2
    assert [r.model for r in trace.records] == ["m1", "m1", "m2", "m2", "m3", "m3"]
    # The same answer of two models is no duplicate.
    assert trace.report.dropped == {}


def test_all_answers_to_a_prompt_are_on_one_side(write: Any) -> None:
    rows = [row(f"Question {'abcdefgh'[i]} about {'stuvwxyz'[i]}?", m) for m in ("m1", "m2") for i in range(8)]
    parts = split_trace(load_trace(write(rows)), dev=0.25, seed=1)
    train, dev = ({r.prompt for r in parts[name].records} for name in ("train", "dev"))
    assert len(dev) == 2
    assert train.isdisjoint(dev)


def test_an_input_belongs_to_the_prompt(read: Read) -> None:
    (with_input,) = read(row("Add them.", "m", input="2, 3"))
    (without,) = read(row("Add them.", "m"))
    assert isinstance(with_input, Exchange)
    assert isinstance(without, Exchange)
    assert with_input.record.prompt == "Add them.\n2, 3"
    assert with_input.record.conversation != without.record.conversation


def test_samples_of_one_model_may_be_numbered(read: Read) -> None:
    (item,) = read(row("Q", "m", sample=2, finish_reason="length"))
    assert isinstance(item, Exchange)
    assert (item.record.sample, item.record.censored) == (2, True)


def test_a_row_without_a_prompt_is_rejected(read: Read) -> None:
    assert read(row("", "m")) == [Reject("empty prompt")]
    assert detect([row("", "m")], "f").name == "model_outputs"
