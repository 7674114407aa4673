"""Whatever a trace is like, it has a profile, a page, and a comparison with any other; nothing is claimed too early."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from profiled import skewed, trace_of

from ecoserve.data import Trace
from ecoserve.data.profiling import Profile, compare_traces, profile_trace
from ecoserve.data.profiling.reporting import render_comparison, render_profile

NAN, INF = float("nan"), float("inf")
TRACES: dict[str, Trace] = {
    "one answer": trace_of([5]),
    "one of one token": trace_of([1], prompt="?", prompt_tokens=0),
    "two to one prompt": trace_of([5, 9], prompt="a"),
    "one with samples": trace_of([5], sample_tokens=[(6, 7)]),
    "all equal": trace_of([7] * 300, prompt_tokens=3, prompt=[f"q{i // 3}" for i in range(300)]),
    "all of one token": trace_of([1] * 300, prompt_tokens=0, prompt="x"),
    "all cut off": trace_of(skewed(300), censored=True, prompt=[f"q{i // 3}" for i in range(300)]),
    "all cut off at one limit": trace_of([512] * 300, censored=True, arrival_s=[float(i) for i in range(300)]),
    "some have no length": trace_of([0] * 10 + list(range(1, 291)), prompt_tokens=0),
    "arrivals that are none": trace_of(skewed(300), arrival_s=[NAN] * 100 + [INF] * 100 + [1.0] * 100),
    "few arrivals missing": trace_of(skewed(300), arrival_s=[NAN] * 5 + [float(i) for i in range(295)]),
    "a model for each answer": trace_of(skewed(300), model=[f"m{i}" for i in range(300)], prompt="q"),
    "one conversation": trace_of(skewed(300), conversation="c", turn=list(range(300))),
    "the longest there can be": trace_of([2**20] * 100 + [1] * 100, prompt_tokens=2**30),
    "no prompts": trace_of(skewed(300)),
    "samples without prompts": trace_of(skewed(300), sample_tokens=[(int(n),) for n in skewed(300, seed=1)]),
}


@pytest.mark.parametrize("name", TRACES)
def test_it_has_a_profile_and_a_page(name: str) -> None:
    profile = profile_trace(TRACES[name])
    # Nothing is NaN or infinite, and JSON keeps all of it.
    assert Profile.model_validate_json(profile.model_dump_json()) == profile
    assert "NaN" not in json.dumps(profile.model_dump(), allow_nan=False)
    assert len(profile.answer) == 5
    assert all(sentence.endswith(".") for sentence in profile.answer)
    page = render_profile(profile)
    assert "</html>" in page
    assert not any(word in page.split("<script", 1)[0] for word in (">nan<", ">None<", ">inf<"))


def test_any_two_can_be_compared() -> None:
    for a, b in itertools.combinations(list(TRACES)[::2], 2):
        comparison = compare_traces(TRACES[a], TRACES[b])
        assert comparison.verdict in ("same", "small", "recalibrate", "retrain")
    assert "</html>" in render_comparison(comparison)


@pytest.mark.parametrize(
    ("name", "worth"),
    [
        ("one answer", "unknown"),
        ("two to one prompt", "unknown"),
        ("all cut off", "unknown"),
        ("all cut off at one limit", "unknown"),
        ("no prompts", "unknown"),
        ("all equal", "no"),
    ],
)
def test_nothing_is_claimed_too_early(name: str, worth: str) -> None:
    assert profile_trace(TRACES[name]).worth == worth


def test_it_is_worth_it_where_prompts_decide_and_not_where_they_do_not() -> None:
    rng = np.random.default_rng(0)
    prompts = [f"q{i // 3}" for i in range(900)]
    decided = np.repeat(skewed(300, 300, 0.9), 3) * rng.lognormal(0, 0.1, 900)
    yes = profile_trace(trace_of(np.maximum(1, decided).astype(int), prompt=prompts))
    assert yes.worth == "yes"
    assert yes.answer[4].startswith("Predicting lengths is worth it here")
    no = profile_trace(trace_of(skewed(900, 300, 0.9), prompt=prompts))
    assert no.worth == "no"
    assert "hardly worth it" in no.answer[4]


def test_what_a_trace_says_is_text_on_the_page() -> None:
    bad = "</script><img src=x onerror=alert(1)>"
    page = render_profile(profile_trace(trace_of(skewed(60), model=[bad] * 30 + ["b"] * 30, split=[bad, "x"] * 30)))
    assert "<img src=x" not in page
    assert "&lt;/script&gt;&lt;img src=x" in page
