"""A workload without data: templated instructions whose conditional length law is known.

The law is a function of the prompt's text alone: log-normal with median ``(fixed + per_item * n) * topic's factor *
style's factor`` tokens and the log-sd ``sigma`` of the task. Opener and wording
are distractions. Lengths are drawn from exactly what :func:`true_distribution` returns, so that a predictor can be
compared with the truth. With seed 0 and 2,000 records no predictor has a mean absolute error below 52 tokens
(:func:`bayes_optimal_mae`); always saying the median costs 134.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from ecoserve.data.measuring import BY_CHARACTERS, estimated_tokens
from ecoserve.data.records import LoadReport, Record, Trace, fingerprint
from ecoserve.errors import TraceError
from ecoserve.lengths import LengthDistribution

#: The "model" that answers.
SYNTHETIC_MODEL: Final = "synthetic-lognormal"
#: No answer is longer than this many tokens.
LONGEST: Final = 1024
_SAMPLES: Final = 3
_BINS: Final = 64
_DEV_SHARE: Final = 0.2


@dataclass(frozen=True, slots=True)
class Task:
    """A kind of instruction: ways to say it, with ``{topic}`` and maybe ``{n}``, and the law of its answers' lengths.

    The median has ``fixed`` tokens and ``per_item`` for each of the ``n`` things asked for; ``sigma`` is the log-sd.
    """

    wordings: tuple[str, ...]
    fixed: float
    per_item: float
    sigma: float


TASKS: Final = (
    Task(("Define {topic}", "What does {topic} mean"), 34, 0, 0.40),
    Task(("Name a synonym for {topic}", "Give me another word for {topic}"), 6, 0, 0.30),
    Task(("Is {topic} worth learning about", "Should a beginner care about {topic}"), 60, 0, 0.70),
    Task(("Tell me a joke about {topic}", "Make me laugh with a joke on {topic}"), 32, 0, 0.45),
    Task(("Write a haiku about {topic}", "Compose a haiku on {topic}"), 22, 0, 0.12),
    Task(("Write a limerick about {topic}", "Compose a limerick on {topic}"), 55, 0, 0.18),
    Task(("Invent a slogan for {topic}", "Come up with a slogan on {topic}"), 13, 0, 0.35),
    Task(("Suggest a title for an article about {topic}", "What could an article on {topic} be called"), 14, 0, 0.30),
    Task(("Classify {topic} as an object, an activity or an idea", "Object, activity or idea: {topic}"), 5, 0, 0.45),
    Task(("Summarize the history of {topic}", "How did {topic} come about"), 190, 0, 0.50),
    Task(("Explain {topic} to a child", "How would you explain {topic} to a five-year-old"), 110, 0, 0.40),
    Task(("Explain how {topic} works", "Describe the workings of {topic}"), 170, 0, 0.50),
    Task(("Compare {topic} with its closest alternative", "How does {topic} differ from similar things"), 180, 0, 0.45),
    Task(("Discuss the pros and cons of {topic}", "What speaks for and against {topic}"), 210, 0, 0.40),
    Task(("Write a short story about {topic}", "Tell me a story in which {topic} matters"), 250, 0, 0.40),
    Task(("Write an essay on {topic}", "Draft an essay that deals with {topic}"), 320, 0, 0.35),
    Task(("Write a letter to a newspaper about {topic}", "Draft a letter to the editor on {topic}"), 200, 0, 0.30),
    Task(("Translate the word for {topic} into French", "How do the French say {topic}"), 8, 0, 0.40),
    Task(("Correct the spelling in this note: i luv {topic}", "Fix the typos: we al like {topic}"), 9, 0, 0.25),
    Task(("Plan a lesson about {topic}", "Outline a school lesson on {topic}"), 280, 0, 0.45),
    Task(("Recommend a book on {topic}", "Which book about {topic} should I read"), 70, 0, 0.65),
    Task(("Write a dialogue about {topic}", "Let two friends talk about {topic}"), 240, 0, 0.45),
    Task(
        ("Write a program that counts mentions of {topic} in a file", "Code a search for {topic} in text"), 160, 0, 0.55
    ),
    Task(("What are common mistakes with {topic}", "Where do people go wrong with {topic}"), 150, 0, 0.45),
    Task(("List {n} facts about {topic}", "Give me {n} facts on {topic}"), 8, 24, 0.22),
    Task(("Name {n} words related to {topic}", "Find {n} words that belong to {topic}"), 3, 4, 0.15),
    Task(("Describe {topic} in {n} sentences", "Write {n} sentences about {topic}"), 2, 21, 0.18),
    Task(("Write {n} paragraphs about {topic}", "Describe {topic} in {n} paragraphs"), 10, 48, 0.25),
    Task(("Ask me {n} quiz questions about {topic}", "Make a quiz of {n} questions on {topic}"), 12, 38, 0.30),
    Task(("Give {n} tips for {topic}", "What are {n} tips on {topic}"), 10, 27, 0.28),
    Task(("List {n} books about {topic}", "Which {n} books cover {topic}"), 6, 19, 0.24),
    Task(("Explain {topic} in {n} steps", "Break {topic} down into {n} steps"), 14, 31, 0.32),
    Task(("Suggest {n} names for a club about {topic}", "Find {n} names for a team devoted to {topic}"), 4, 6, 0.20),
    Task(("Tell {n} short anecdotes about {topic}", "Share {n} anecdotes on {topic}"), 15, 42, 0.38),
)

#: Family of topics -> what it makes of the median, and its topics.
TOPICS: Final = {
    "everyday": (
        0.75,
        "baking bread|house plants|bicycles|coffee|chess|knitting|running shoes|dogs|cats|gardening|camping|"
        "board games|breakfast|public transport|tea|umbrellas",
    ),
    "nature": (
        0.95,
        "volcanoes|glaciers|honey bees|coral reefs|rain forests|whales|mushrooms|tides|lightning|deserts|owls|"
        "rivers|earthquakes|migrating birds|bamboo|snow",
    ),
    "technology": (
        1.15,
        "solar panels|databases|electric cars|compilers|satellites|encryption|3D printing|robots|batteries|"
        "search engines|neural networks|wind turbines|microscopes|radio|spreadsheets|bridges",
    ),
    "ideas": (
        1.40,
        "democracy|inflation|the Renaissance|free will|evolution|the Silk Road|justice|probability|utilitarianism|"
        "human rights|the industrial revolution|game theory|stoicism|relativity|copyright|colonialism",
    ),
}

#: What may follow the instruction, and what it makes of the median.
STYLES: Final = {
    "": 1.0,
    "Be brief.": 0.5,
    "Use simple words.": 0.85,
    "Include an example.": 1.3,
    "Think step by step.": 1.5,
    "Go into detail.": 1.9,
}

#: What may come before it; independent of the length.
OPENERS: Final = ("", "Hello! ", "For my class: ", "I am curious. ", "Quick question: ", "Thanks in advance. ")

#: How many things may be asked for.
COUNTS: Final = (2, 3, 4, 5, 6, 8, 10)

_FACTORS: Final = {topic: factor for factor, topics in TOPICS.values() for topic in topics.split("|")}


def synthetic_trace(n: int, *, seed: int = 0) -> Trace:
    """A trace of ``n`` >= 1 synthetic requests, format ``"synthetic"``.

    Each record has the length of one answer and of three others to the same prompt, the prompt's length as characters /
    4, and its own split: a pair of task and topic is either in ``train`` (four of five) or in ``dev``. The same seed
    gives the same trace; a longer one begins with the shorter.
    """
    if n < 1:
        raise TraceError(f"a synthetic trace of {n} records has nothing in it", fix="ask for 1 or more")
    # Which pairs are held out is part of the law, not of the seed: traces of two seeds can be train and dev.
    topics = list(_FACTORS)
    held_out = np.random.default_rng(20241124).random((len(TASKS), len(topics))) < _DEV_SHARE
    records = []
    for i, draw in enumerate(np.random.default_rng(seed).random((n, 6 + 1 + _SAMPLES))):
        task, topic, wording, style, opener, count = (
            int(u * k)
            for u, k in zip(draw, (len(TASKS), len(topics), 2, len(STYLES), len(OPENERS), len(COUNTS)), strict=False)
        )
        asked = TASKS[task].wordings[wording].format(topic=topics[topic], n=COUNTS[count])
        end = "?" if asked.split()[0] in _QUESTIONS else "."
        prompt = f"{OPENERS[opener]}{asked}{end} {list(STYLES)[style]}".strip()
        law = _law_of(prompt)
        lengths = [law.quantile(float(u)) for u in draw[6:]]
        records.append(
            Record(
                conversation=f"synthetic-{seed}-{i}",
                prompt=prompt,
                response_tokens=lengths[0],
                prompt_tokens=estimated_tokens(prompt),
                sample_tokens=tuple(lengths[1:]),
                model=SYNTHETIC_MODEL,
                split="dev" if held_out[task, topic] else "train",
                censored=lengths[0] >= LONGEST,
            )
        )
    source, sources = f"synthetic (seed {seed})", ("synthetic", LoadReport(rows_in=n, kept=n), BY_CHARACTERS)
    return Trace(tuple(records), source, "synthetic", fingerprint(records), *sources)


def true_distribution(record: Record) -> LengthDistribution:
    """The distribution that the lengths of a synthetic record's prompt were drawn from."""
    if record.prompt is None:
        raise TraceError("a record without a prompt is no synthetic one", where=record.conversation)
    return _law_of(record.prompt)


def bayes_optimal_mae(records: Sequence[Record]) -> float:
    """The mean absolute error (tokens) of the best possible point prediction, the median of each record's law.

    It is an expectation over the law, not over the lengths that were drawn: the sum of P(length <= k) for k below the
    median and of P(length > k) from it on.
    """
    if not records:
        raise TraceError("no records to take an error of")
    errors = []
    for law in map(true_distribution, records):
        survival = law.survival_at(np.arange(law.upper))
        median = law.quantile(0.5)
        errors.append((1.0 - survival[:median]).sum() + survival[median:].sum())
    return float(np.mean(errors))


_QUESTIONS: Final = ("What", "Is", "Should", "How", "Where", "Which", "Object,")


def _patterns() -> list[tuple[re.Pattern[str], int]]:
    topic = "(?P<topic>" + "|".join(map(re.escape, _FACTORS)) + ")"
    before = "(?:" + "|".join(map(re.escape, OPENERS)) + ")"
    after = "[.?](?: (?P<style>" + "|".join(re.escape(s) for s in STYLES if s) + "))?"
    found = []
    for i, task in enumerate(TASKS):
        for wording in task.wordings:
            text = re.escape(wording).replace(r"\{topic\}", topic).replace(r"\{n\}", r"(?P<n>\d+)")
            found.append((re.compile(before + text + after), i))
    return found


_PATTERNS: Final = _patterns()


@lru_cache(maxsize=1 << 16)
def _law_of(prompt: str) -> LengthDistribution:
    for pattern, task in _PATTERNS:
        found = pattern.fullmatch(prompt)
        if found:
            parts = found.groupdict()
            items = int(parts.get("n") or 0)
            law = TASKS[task]
            median = (law.fixed + law.per_item * items) * _FACTORS[parts["topic"]] * STYLES[parts["style"] or ""]
            return LengthDistribution.lognormal(median, law.sigma, LONGEST, _BINS)
    raise TraceError(f"{prompt[:60]!r} is no synthetic prompt", fix="its law is known for synthetic_trace only")
