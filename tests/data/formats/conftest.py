"""What the tests of formats share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ecoserve.data.formats import Exchange, Reject, detect

Read = Callable[[dict[str, Any]], list[Exchange | Reject]]
Only = Callable[[dict[str, Any]], Exchange]


@pytest.fixture
def read() -> Read:
    """The items that a row, number 7 of its file, makes in the format it is recognised as."""
    return lambda row: list(detect([row], "file").read(row, 7))


@pytest.fixture
def only(read: Read) -> Only:
    """The one exchange of a row."""

    def one(row: dict[str, Any]) -> Exchange:
        (item,) = read(row)
        assert isinstance(item, Exchange), item
        return item

    return one
