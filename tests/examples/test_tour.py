"""The example notebook runs, and prints what it shows (figures may change, words may not).

``python tests/examples/test_tour.py`` runs it and writes its outputs anew.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "tour.ipynb"


def run(notebook: dict[str, Any]) -> list[str]:
    """What each code cell prints, run one after another in one namespace."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    printed = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(ast.parse("".join(cell["source"])), NOTEBOOK.name, "exec"), namespace)
            printed.append(out.getvalue())
    return printed


def words(text: str) -> list[str]:
    """A text without its figures."""
    return re.findall(r"[^\W\d_]+", text)


def test_the_notebook_prints_what_it_shows() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    shown = ["".join("".join(output["text"]) for output in cell["outputs"]) for cell in code]
    assert all(shown)
    assert [words(text) for text in run(notebook)] == [words(text) for text in shown]


if __name__ == "__main__":
    read = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    code = [cell for cell in read["cells"] if cell["cell_type"] == "code"]
    for number, (cell, text) in enumerate(zip(code, run(read), strict=True), 1):
        stream = {"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)}
        cell |= {"execution_count": number, "outputs": [stream] if text else []}
    NOTEBOOK.write_text(json.dumps(read, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
