"""GPU code of other architectures is blanked out of a library, and nothing else is touched."""

from __future__ import annotations

import struct

import pytest
from gpu_pack import without_other_architectures

PTX, ELF = 1, 2
#: The mark of a container, in other data: its size is no size.
STRAY = struct.pack("<IHHQ", 0xBA55ED50, 1, 16, 2**60)


def entry(kind: int, arch: int, code: bytes) -> bytes:
    return struct.pack("<HHIQ12xI", kind, 0, 64, len(code), arch).ljust(64, b"h") + code


def container(*entries: bytes) -> bytes:
    body = b"".join(entries)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


@pytest.mark.parametrize(
    ("entries", "kept"),
    [
        ([(ELF, 80, b"\xa1" * 40), (ELF, 90, b"\xa2" * 24), (PTX, 90, b"\xa3" * 8)], {b"\xa2"}),
        ([(ELF, 80, b"\xa1" * 40), (PTX, 70, b"\xa2" * 16), (PTX, 80, b"\xa3" * 8)], {b"\xa3"}),
        ([(ELF, 90, b"\xa1" * 40), (ELF, 90, b"\xa2" * 24)], {b"\xa1", b"\xa2"}),
        ([(ELF, 100, b"\xa1" * 40), (PTX, 100, b"\xa2" * 8)], set()),
    ],
)
def test_only_one_architecture_stays(entries: list[tuple[int, int, bytes]], kept: set[bytes]) -> None:
    library = (
        b"\x7fELF text "
        + container(*(entry(*e) for e in entries))
        + b" data "
        + STRAY
        + container(entry(ELF, 90, b"z"))
    )
    pruned = without_other_architectures(library, 90)
    assert len(pruned) == len(library)
    assert pruned.startswith(b"\x7fELF text ")
    assert pruned.endswith(b"z")
    assert b" data " in pruned
    assert {bytes([b]) for b in pruned} & {b"\xa1", b"\xa2", b"\xa3"} == kept
