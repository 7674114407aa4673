"""docs/fidelity.md says what the result files say."""

from __future__ import annotations

import fidelity_tables
import pytest


def test_the_page_has_the_tables_of_the_result_files() -> None:
    text = fidelity_tables.DOCUMENT.read_text("utf-8")
    assert fidelity_tables.filled(text) == text


def test_a_page_without_a_place_for_a_table_is_refused() -> None:
    with pytest.raises(ValueError, match="no place for logs"):
        fidelity_tables.filled("# nothing here")
