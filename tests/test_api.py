"""``import ecoserve``: which names there are, and that importing it loads nothing slow."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import ecoserve

#: What users import; a name that goes belongs into CHANGELOG.md.
NAMES = ["LengthDistribution", "Sweep", "load_predictor", "load_trace", "profile", "simulate"]


def test_the_names_are_these_and_each_is_documented() -> None:
    assert sorted(ecoserve.__all__) == NAMES
    assert set(NAMES) <= set(dir(ecoserve))
    for name in NAMES:
        assert inspect.getdoc(getattr(ecoserve, name)), name
        assert f"``{name}``" in (ecoserve.__doc__ or ""), name


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'guess'"):
        ecoserve.guess  # noqa: B018


def test_importing_loads_nothing_slow_and_a_name_only_what_it_needs() -> None:
    code = (
        "import sys, ecoserve; assert 'numpy' not in sys.modules; "
        "ecoserve.load_trace, ecoserve.profile, ecoserve.load_predictor, ecoserve.LengthDistribution; "
        "print(sorted({'torch', 'vllm', 'transformers', 'datasets', 'lightgbm', 'sklearn'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
