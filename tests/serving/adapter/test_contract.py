"""The contract with vLLM holds on the version that is installed, and every kind of break is one readable line."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import pytest
from vllm.v1.core.sched import async_scheduler, request_queue, scheduler
from vllm.v1.request import RequestStatus

from ecoserve.errors import ConfigError
from ecoserve.serving.adapter import contract


def test_the_installed_vllm_has_all_we_rely_on() -> None:
    assert [str(b) for b in contract.check()] == []


def lines() -> list[str]:
    return [str(b) for b in contract.check()]


def test_another_version_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "vllm_version", lambda: "0.34.1+cpu")
    (line,) = lines()
    assert "vLLM 0.34.1+cpu" in line
    assert "<0.34" in line
    assert ">=0.32.0" in line


@pytest.mark.parametrize("version", ["0.32.0", "0.32.4+cpu", "0.33.1rc1"])
def test_versions_of_the_range_pass(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(contract, "vllm_version", lambda: version)
    assert lines() == []


def test_no_vllm_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise contract.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(contract.metadata, "version", missing)
    with pytest.raises(ConfigError, match="vLLM is not installed; run `make setup`"):
        contract.check()


def test_a_name_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(async_scheduler, "AsyncScheduler")
    assert lines() == ["vllm.v1.core.sched.async_scheduler.AsyncScheduler is gone (base class of our scheduler)"]


def test_a_module_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "NAMES", (*contract.NAMES, ("vllm.v1.no_such_module", "Name", "a test")))
    assert lines() == ["vllm.v1.no_such_module.Name is gone (a test)"]


def test_a_status_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    names = tuple((m, n.replace("PREEMPTED", "SUSPENDED"), why) for m, n, why in contract.NAMES)
    monkeypatch.setattr(contract, "NAMES", names)
    assert not hasattr(RequestStatus, "SUSPENDED")
    assert lines() == ["vllm.v1.request.RequestStatus.SUSPENDED is gone (status of a paused request)"]


def test_a_method_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(scheduler.Scheduler, "_free_blocks")
    assert any("Scheduler._free_blocks is gone" in line for line in lines())


def test_a_parameter_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    def _preempt_request(self: Any, request: Any, timestamp: float) -> None:
        raise NotImplementedError("self.waiting.prepend_request(request)")

    monkeypatch.setattr(scheduler.Scheduler, "_preempt_request", _preempt_request)
    (line,) = lines()
    assert "Scheduler._preempt_request has no parameter drop_stale_output" in line


def test_a_rule_that_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    def _holds_kv_blocks(request: Any) -> bool:
        return bool(request.blocks)

    monkeypatch.setattr(scheduler.Scheduler, "_holds_kv_blocks", _holds_kv_blocks)
    (line,) = lines()
    assert "Scheduler._holds_kv_blocks no longer says 'request.num_computed_tokens > 0'" in line
    assert "how vLLM knows a KV holder" in line


def test_a_rules_function_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(scheduler.Scheduler, "_holds_kv_blocks")
    assert any("Scheduler._holds_kv_blocks is gone (how vLLM knows a KV holder)" in line for line in lines())


def test_a_new_duty_of_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    duties = request_queue.RequestQueue.__abstractmethods__ | {"shuffle"}
    monkeypatch.setattr(request_queue.RequestQueue, "__abstractmethods__", frozenset(duties))
    assert lines() == ["RequestQueue.shuffle is new (our queues do not have it)"]


#: read once for all rules
source_of = cache(inspect.getsource)


@pytest.mark.parametrize("rule", contract.RULES, ids=lambda r: f"{r[1]}: {r[3]}"[:60])
def test_every_rule_is_about_a_text_that_can_go_missing(monkeypatch: pytest.MonkeyPatch, rule: Any) -> None:
    module, name, text, purpose = rule
    found = contract._find(module, name)
    monkeypatch.setattr(
        contract.inspect, "getsource", lambda f: source_of(f).replace(text, "") if f is found else source_of(f)
    )
    assert f"{module}.{name} no longer says {text!r} ({purpose})" in lines()


def test_every_private_name_we_use_is_in_the_contract() -> None:
    """What our scheduler calls or overrides of vLLM's own must be checked: a list that lags behind checks nothing."""
    from ecoserve.serving.adapter.counting import CountingScheduler
    from ecoserve.serving.adapter.scheduler import EcoServeScheduler

    ours = {n for cls in (CountingScheduler, EcoServeScheduler) for n in vars(cls) if not n.startswith(("__", "_abc_"))}
    overridden = {n for n in ours if hasattr(async_scheduler.AsyncScheduler, n)}
    checked = {method for _, cls, method, _ in contract.METHODS if cls == "Scheduler"}
    assert overridden <= checked, f"not in the contract: {sorted(overridden - checked)}"
