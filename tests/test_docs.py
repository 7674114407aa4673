"""The docs build, their links hold, their lines are short, their words right; the front page says what was measured."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import front_page
import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [README, ROOT / "SECURITY.md", ROOT / "CHANGELOG.md", *DOCS]
LONGEST = 120


def prose(text: str) -> list[tuple[int, str]]:
    """Lines with their numbers, without code, tables and what a script has made, which do not wrap."""
    lines, code, made = [], False, False
    for number, line in enumerate(text.splitlines(), 1):
        code ^= line.lstrip().startswith("```")
        made = (made or ": made by " in line) and not line.startswith("<!-- end of ")
        if not (code or made or line.lstrip().startswith(("|", "```")) or line.startswith("    ")):
            lines.append((number, line))
    return lines


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: dead links, lost anchors and pages without a place in the navigation are errors."""
    folder = tmp_path_factory.mktemp("site")
    answer = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "-d", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    return folder


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    loaded = re.compile(r'<(?:script|img|iframe|link)[^>]*?(?:src|href)="?(https?:[^" >]+)')
    found = {url for page in pages for url in loaded.findall(page.read_text(encoding="utf-8"))}
    assert not found


def test_the_reference_is_made_from_the_code(site: Path) -> None:
    from ecoserve.cli.main import COMMANDS
    from ecoserve.serving.core.settings import SchedulerSettings

    def page(name: str) -> str:
        return (site / "reference" / f"{name}.html").read_text(encoding="utf-8")

    cli, settings, python = page("cli"), page("settings"), page("python")
    assert [e.name for e in COMMANDS if f'id="{e.name}"' not in cli] == []
    assert [name for name in SchedulerSettings.model_fields if f"<code>{name}</code>" not in settings] == []
    assert "ecoserve_underprediction_actions_total" in page("metrics")
    assert "<code>sharegpt</code>" in page("formats")
    assert 'id="simulate"' in python
    assert "LengthDistribution.quantile" in python


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_lines_are_short(path: Path) -> None:
    if path.name == "log.md":
        pytest.skip("not wrapped yet")
    long = [f"{n}: {line[:60]}" for n, line in prose(path.read_text(encoding="utf-8")) if len(line) > LONGEST]
    assert long == []


def test_files_that_are_named_exist() -> None:
    """Mentions of docs in code and text, and links of pages beside docs/ with their anchors."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    dead = []
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in {".py", ".md", ".yaml", ".yml", ".toml", ".json", ".sh"} and path.is_file():
            for found in re.findall(r"(?<![\w/.-])docs/[\w/-]+\.md", path.read_text(encoding="utf-8")):
                if not (ROOT / found).is_file() and name != "docs/log.md":
                    dead.append(f"{name}: {found}")
    for path in (README, ROOT / "SECURITY.md"):
        for target in re.findall(r"\]\((?!https?:)([^)]+)\)", path.read_text(encoding="utf-8")):
            file, _, anchor = target.partition("#")
            headings = re.findall(r"^#+ (.*)", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in headings}
            if not (ROOT / file).exists() or (anchor and anchor not in slugs):
                dead.append(f"{path.name}: {target}")
    assert dead == []


def test_words_are_spelled_right() -> None:
    program = Path(sys.executable).with_name("typos")
    answer = subprocess.run([program, "--format", "brief", *PAGES], cwd=ROOT, capture_output=True, text=True)
    assert (answer.returncode, answer.stdout) == (0, "")


def test_the_readme_is_short_and_shows_what_was_measured() -> None:
    text = README.read_text(encoding="utf-8")
    plain = re.sub(r"<!--.*?-->|\]\([^)]*\)", " ", text)
    assert len([word for word in plain.split() if re.search("[a-z]", word, re.IGNORECASE)]) <= 400
    assert len(re.findall(r"^- ", text, re.MULTILINE)) == 3
    assert front_page.fill(text) == text, "python scripts/front_page.py renews it"
    assert front_page.PICTURE.read_text(encoding="utf-8") == front_page.picture()
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 6
    compile(code, "README.md", "exec")
