"""The words and numbers of the synthetic workload; its law is in :mod:`ecoserve.data.synthetic`.

Each wording belongs to one task, each topic to one family, so that a prompt can be read back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Task:
    """A kind of instruction.

    Attributes:
        wordings: ways to say it, with ``{topic}`` and, where it counts something, ``{n}``.
        fixed: tokens of the median answer at ``n`` 0.
        per_item: further tokens of it for each of the ``n`` things asked for.
        sigma: log-sd of the answer's length around its median.
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
