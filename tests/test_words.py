"""Names, help, messages and docs use the field's words (docs/how/paper-terms.md maps the paper's).

Old names that are still accepted for a release (``ecoserve/deprecations.py``) are no fault.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from ecoserve.deprecations import CLI_OPTIONS, METRICS, SETTINGS, SUMMARY_KEYS

ROOT = Path(__file__).resolve().parents[1]
SUFFIXES = {".py", ".md", ".yaml", ".toml", ".j2", ".js", ".json", ".sh", ""}
#: aliases of old names, their table, the page that maps the paper's words, recorded results, and this file
EXCEPT = (
    "ecoserve/deprecations.py",
    "CHANGELOG.md",
    "docs/how/paper-terms.md",
    "benchmarks/results/",
    "tests/test_words.py",
)

#: private words: what was predicted or taken as known, people in place of requests, the ledger, steps of a procedure
PRIVATE = re.compile(
    r"(?<![a-z])(?:(?:fore|un)?told|(?:dis)?believ\w*|(?:no|some|every)body|who(?:so)?ever"
    r"|how-manieth|the books|rungs?)"
    r"(?![a-z])|\bdef (?:meet|left|settles|believe)\b",
    re.IGNORECASE,
)
#: the paper's abbreviations
PAPER = re.compile(r"\b(?:PTs?|GTs?|KVC|TFS|RLs?)\b|(?<![A-Za-z])[Kk]vc(?![a-z])|Kvc[A-Z]")
#: old names that are still taken or published, and a rule of ruff's
ALLOWED = re.compile(
    "|".join(
        sorted(
            {
                rf"(?<!\w){re.escape(old)}(?!\w)"
                for table in (SETTINGS, METRICS, SUMMARY_KEYS, CLI_OPTIONS)
                for old in table
            }
            | {'"PT"'}
        )
    )
)


def found(text: str) -> list[str]:
    """Words of the lists above in a text."""
    if not (PRIVATE.search(text) or PAPER.search(text)):
        return []
    return [m.group() for pattern in (PRIVATE, PAPER) for m in pattern.finditer(ALLOWED.sub("", text))]


def test_the_words_of_names_help_and_docs() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    lines = []
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix not in SUFFIXES or name.startswith(EXCEPT) or not path.is_file():
            continue
        lines += [f"{name}: {word} in its name" for word in found(name)]
        text = path.read_text(encoding="utf-8", errors="replace")
        for number, line in enumerate(text.splitlines() if found(text) else (), 1):
            lines += [f"{name}:{number}: {word}" for word in found(line)]
    assert not lines, f"{len(lines)} words that the project avoids:\n" + "\n".join(lines[:40])


@pytest.mark.parametrize(
    "text", ["it is told", "BELIEVED", "test_nobody_waits", "Whoever waits", "rung_up", "a GT", "KVC", "kvc_blocks"]
)
def test_such_a_word_is_found(text: str) -> None:
    assert found(text)


@pytest.mark.parametrize(
    "text", ["left over", "pt and gt", "kv_used", "bookkeeping", "VLLM_CPU_KVCACHE_SPACE", "wrung", "toldo"]
)
def test_other_words_are_not(text: str) -> None:
    assert not found(text)
