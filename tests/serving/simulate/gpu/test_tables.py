"""Tables: made once, kept whole, made again when damaged; nothing in them beats the GPU's peaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from ecoserve.errors import ConfigError
from ecoserve.serving.simulate.gpu import tables
from ecoserve.serving.simulate.gpu.hardware import find_gpu
from ecoserve.serving.simulate.gpu.kernels import KernelTimes
from ecoserve.serving.simulate.gpu.model import GpuModel
from ecoserve.serving.simulate.gpu.shapes import load_shape
from ecoserve.serving.simulate.gpu.tables import TOKENS, Floors, Line, Plane, Tables, cache_file, lifted, load_tables

SHAPE, GPU = load_shape("llama-3.1-8b"), find_gpu("h100_sxm")


def same(a: Tables, b: Tables) -> bool:
    return all(np.array_equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(Tables))


@pytest.fixture
def kept(machine: Callable[..., GpuModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Tables]:
    """A cache with one file, and what is in it; from here on making tables is counted by failing."""
    machine()
    whole = load_tables(SHAPE, GPU, 1)
    data = cache_file(SHAPE, GPU, 1).read_bytes()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = cache_file(SHAPE, GPU, 1)
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    return path, whole


def test_tables_are_read_from_the_cache(kept: tuple[Path, Tables], monkeypatch: pytest.MonkeyPatch) -> None:
    def made_again(*args: object) -> Tables:
        raise AssertionError("they were there")

    monkeypatch.setattr(tables, "make_tables", made_again)
    assert same(load_tables(SHAPE, GPU, 1), kept[1])


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "other sizes", "not finite", "a table less"])
def test_a_damaged_file_is_made_again(kept: tuple[Path, Tables], monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    path, whole = kept
    arrays = {f.name: getattr(whole, f.name).copy() for f in fields(Tables)}
    if damage in ("empty", "text", "cut"):
        path.write_bytes({"empty": b"", "text": b"no zip", "cut": path.read_bytes()[:-5000]}[damage])
    else:
        if damage == "other sizes":
            arrays["tokens"] = arrays["tokens"][:-1]
        elif damage == "not finite":
            arrays["logits"][7] = np.nan
        else:
            del arrays["stream"]
        np.savez(path, **arrays)
    monkeypatch.setattr(tables, "make_tables", lambda *args: whole)
    assert same(load_tables(SHAPE, GPU, 1), whole)
    monkeypatch.undo()
    assert same(tables._read(path) or pytest.fail("it was not kept"), whole)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_cache_that_cannot_be_written_only_costs_time(
    kept: tuple[Path, Tables], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tables, "make_tables", lambda *args: kept[1])
    assert same(load_tables(SHAPE, GPU, 1), kept[1])


def test_whatever_tables_depend_on_is_in_the_files_name(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {
        cache_file(SHAPE, GPU, 1),
        cache_file(SHAPE, GPU, 2),
        cache_file(SHAPE, GPU, 1, 2),
        cache_file(SHAPE, find_gpu("h200_sxm"), 1),
        cache_file(SHAPE.model_copy(update={"layers": 33}), GPU, 1),
        cache_file(SHAPE.model_copy(update={"kv_cache": "fp8"}), GPU, 1),
    }
    assert len(names) == 6
    assert cache_file(SHAPE.model_copy(update={"name": "another"}), GPU, 1) in names
    monkeypatch.setattr(tables, "VERSION", -1)
    assert cache_file(SHAPE, GPU, 1) not in names


def test_what_was_measured_below_the_bound_is_lifted_to_it(kept: tuple[Path, Tables]) -> None:
    floors = Floors(SHAPE, GPU, 1)
    fast = replace(kept[1], tokens=np.full(len(TOKENS), 1e-3), logits=kept[1].logits)
    found, shares = lifted(fast, floors)
    assert shares["tokens"] == 1.0
    assert shares["logits"] == 0.0
    # One token: all projections and feed-forward layers once from memory, 2 bytes a parameter.
    parameters = 32 * (4096 * 128 * (2 * 32 + 2 * 8) + 3 * 4096 * 14336)
    assert found.tokens[0] == pytest.approx(2 * parameters / 3.35e12 * 1e3)
    # Many tokens: their multiplications at the peak.
    assert found.tokens[4095] == pytest.approx(2 * parameters * 4096 / 989e12 * 1e3)
    assert (lifted(found, floors)[0].tokens == found.tokens).all()


def test_floors_of_experts_count_those_of_one_token() -> None:
    shape = load_shape("mixtral-8x7b")
    one = Floors(shape, GPU, 1).experts([1])[0]
    assert one == pytest.approx(2 * 32 * 2 * 3 * 4096 * 14336 / 3.35e12 * 1e3)
    assert Floors(shape, GPU, 2).experts([1])[0] == pytest.approx(one / 2)
    fp8 = load_shape("llama-3.1-8b").model_copy(update={"weights": "fp8"})
    assert Floors(fp8, GPU, 1).tokens([1])[0] == pytest.approx(Floors(SHAPE, GPU, 1).tokens([1])[0] / 2)


def test_lines_and_planes_meet_their_points_and_go_on() -> None:
    line = Line([1, 2, 3, 10], np.asarray([1.0, 2.0, 4.0, 11.0]))
    assert [line(n) for n in (1, 2, 3, 10)] == [1.0, 2.0, 4.0, 11.0]
    assert line(5) == 6.0
    assert line(12) == 13.0
    plane = Plane([1, 3], [0, 10, 20], np.asarray([[0.0, 10.0, 30.0], [2.0, 12.0, 32.0]]))
    assert plane(1, 10) == 10.0
    assert plane(2, 5) == 6.0
    assert plane(5, 30) == 54.0


def test_an_unmeasured_combination_is_one_line() -> None:
    for tp, match in ((3, "cannot be cut for tp 3"), (0, "cannot be cut")):
        with pytest.raises(ConfigError, match=match) as raised:
            KernelTimes(SHAPE, GPU, tp)
        assert raised.value.exit_code == 2
    with pytest.raises(ConfigError, match="a100_sxm has no fp8"):
        KernelTimes(SHAPE.model_copy(update={"weights": "fp8"}), find_gpu("a100_sxm"), 1)
    with pytest.raises(ConfigError, match="cannot share 0 experts among 2"):
        KernelTimes(SHAPE, GPU, 1, 2)
