"""What we rely on in vLLM is read off our own modules, is there in the installed one, and each break is one line."""

from __future__ import annotations

import ast
import inspect
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import vllm.v1.request
from packaging.requirements import Requirement
from vllm.v1.core.sched import async_scheduler, request_queue, scheduler

from ecoserve.errors import ConfigError
from ecoserve.serving.adapter import contract


def test_the_installed_vllm_has_all_we_rely_on() -> None:
    assert contract.check() == []


def test_the_range_that_pip_gives_is_the_one_that_full_knows() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    for build in ("cuda", "cpu"):
        (engine,) = map(Requirement, project["optional-dependencies"][build])
        assert engine.specifier == contract.FULL


@pytest.mark.parametrize(
    ("version", "known"),
    [
        *((v, True) for v in ("0.32.0", "0.32.4+cpu", "0.33.1rc1", "0.33.0.dev3")),
        *((v, False) for v in ("0.31.9", "0.32.0rc1", "0.34.0rc1", "0.34.0+cu130", "1.0")),
    ],
)
def test_versions_that_full_knows(version: str, known: bool) -> None:
    assert contract.full_knows(version) == known


def test_no_vllm_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise contract.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(contract.metadata, "version", missing)
    with pytest.raises(ConfigError, match="vLLM is not installed; run `make setup`"):
        contract.vllm_version()


# -- what is read off our modules ----------------------------------------------------------------------------------

OURS = """
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.entrypoints.cli import serve as command

class First(AsyncScheduler):
    def __init__(self):
        self.mine = 1
    def _free_blocks(self, request):
        super()._free_blocks(request)
        return self.mine, self.running, request.num_tokens

class Second(First):
    def schedule(self, *args):
        from vllm.v1.request import RequestStatus
        self.requests[0].status = RequestStatus.RUNNING
        self.finish_requests("a", finished_status=1)
        super()._free_blocks(1)
        return command.run_server, self.mine

try:
    from vllm.new_place import Moved
except ImportError:
    from vllm.old_place import Moved

def apart(session: First):
    return session.anything
"""


def test_every_use_is_found(tmp_path: Path) -> None:
    path = tmp_path / "ours/serving/adapter/a.py"
    path.parent.mkdir(parents=True)
    path.write_text(OURS)
    own = "vllm.v1.core.sched.async_scheduler:AsyncScheduler"
    found = {(need.place, need.call, need.takes) for need in contract.needs(tmp_path / "ours")}
    assert found == {
        (own, None, None),
        (own, None, ("__init__", "_free_blocks", "mine")),
        (own, None, ("__init__", "_free_blocks", "mine", "schedule")),
        (f"{own}._free_blocks", (1, ()), None),
        (f"{own}._free_blocks", None, ("self", "request")),
        (f"{own}.schedule", None, None),
        (f"{own}.running", None, None),
        (f"{own}.requests", None, None),
        (f"{own}.finish_requests", (1, ("finished_status",)), None),
        ("vllm.v1.request:Request.num_tokens", None, None),
        ("vllm.v1.request:Request.status", None, None),
        ("vllm.v1.request:RequestStatus", None, None),
        ("vllm.v1.request:RequestStatus.RUNNING", None, None),
        ("vllm.new_place:Moved|vllm.old_place:Moved", None, None),
        ("vllm.entrypoints.cli:serve", None, None),
        ("vllm.entrypoints.cli:serve.run_server", None, None),
    }
    assert {need.user for need in contract.needs(tmp_path / "ours") if "running" in need.place} == {
        "ours/serving/adapter/a.py:10"
    }


def test_names_that_vllm_has_too_are_used_on_purpose() -> None:
    """A name of ours that a new vLLM uses for something else would break both in silence."""
    from ecoserve.serving.adapter.scheduler import EcoServeScheduler

    used = {n.place.rpartition(".")[2] for n in contract.needs() if not n.own}
    ours: set[str] = set()
    for cls in EcoServeScheduler.__mro__[: EcoServeScheduler.__mro__.index(async_scheduler.AsyncScheduler)]:
        ours |= {n for n in vars(cls) if not n.startswith(("__", "_abc_"))}
        tree = ast.parse(inspect.getsource(cls))
        ours |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}
    theirs = {*dir(async_scheduler.AsyncScheduler), *contract._instance_names(async_scheduler.AsyncScheduler)}
    both = ours & theirs
    assert both <= used


# -- what a break says ---------------------------------------------------------------------------------------------


def test_a_name_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(scheduler.Scheduler, "_free_request")
    (line,) = contract.check()
    assert line.startswith("vllm.v1.core.sched.async_scheduler.AsyncScheduler._free_request is gone (used in ecoserve/")


def test_a_module_that_cannot_be_imported_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm.v1.request", None)
    assert {line.partition(" (used")[0] for line in contract.check()} == {
        "vllm.v1.request cannot be imported: import of vllm.v1.request halted; None in sys.modules"
    }


def test_an_attribute_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Request:
        def __init__(self) -> None:
            self.request_id = ""

    monkeypatch.setattr(vllm.v1.request, "Request", Request)
    lines = contract.check()
    assert any(line.startswith("vllm.v1.request.Request.num_in_flight_tokens is gone") for line in lines)
    assert not any("request_id" in line for line in lines if "is gone" in line)


def fewer(self: Any, request: Any, timestamp: float) -> None: ...


def more(self: Any, request: Any, timestamp: float, drop_stale_output: bool = False, why: str = "") -> None: ...


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (fewer, "AsyncScheduler._preempt_request cannot be called as we do: too many positional arguments"),
        (more, "AsyncScheduler._preempt_request has new parameters that our override lacks: why"),
    ],
)
def test_a_parameter_that_has_changed(monkeypatch: pytest.MonkeyPatch, changed: Any, said: str) -> None:
    monkeypatch.setattr(scheduler.Scheduler, "_preempt_request", changed)
    (line,) = contract.check()
    assert said in line


def test_a_new_duty_of_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    duties = request_queue.RequestQueue.__abstractmethods__ | {"shuffle"}
    monkeypatch.setattr(request_queue.RequestQueue, "__abstractmethods__", frozenset(duties))
    (line,) = contract.check()
    assert "RequestQueue has new abstract methods that our class lacks: shuffle" in line
