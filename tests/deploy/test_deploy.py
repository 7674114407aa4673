"""deploy/: every metric and option that is named there exists, and the times of probes and drains fit."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus" / "alerts.yml"


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((DEPLOY / "grafana" / "ecoserve.json").read_text(encoding="utf-8"))
    return loaded


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    panels = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ())]
    asked = [v["query"]["query"] for v in dashboard()["templating"]["list"] if v["type"] == "query"]
    return [*panels, *asked, *(rule["expr"] for rule in rules())]


def vllms() -> set[str]:
    """vLLM's metrics, as it names them in its source: counters without their ending."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    text = (Path(spec.origin).parent / "v1" / "metrics" / "loggers.py").read_text(encoding="utf-8")
    return set(re.findall(r'"(vllm:\w+)"', text))


def test_every_metric_that_dashboard_and_rules_name_exists() -> None:
    ours = (ROOT / "tests" / "public_names.txt").read_text(encoding="utf-8")
    named = {name for text in expressions() for name in re.findall(r"\b(?:ecoserve_|vllm:)\w+", text)}
    assert len(named) > 30
    known = set(re.findall(r"^metric: (\w+)$", ours, re.M)) | vllms()
    missing = {n for n in named if n not in known and re.sub(r"_(total|bucket|sum|count)$", "", n) not in known}
    assert not missing


def test_the_dashboard_is_one() -> None:
    panels = dashboard()["panels"]
    assert len({p["id"] for p in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        if panel["type"] != "row":
            assert panel["targets"]
            assert panel["description"]
            assert panel["fieldConfig"]["defaults"]["unit"]


def test_every_alert_says_how_bad_it_is_and_is_documented_and_tested() -> None:
    documented = (ROOT / "docs" / "guides" / "deploying.md").read_text(encoding="utf-8")
    tested = (RULES.parent / "alerts_test.yml").read_text(encoding="utf-8")
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert "{{ $labels.instance }}" in rule["annotations"]["summary"]
        assert f"`{rule['alert']}`" in documented
        assert f'"{rule["alert"]}"' in tested


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
@pytest.mark.parametrize("arguments", ["check rules alerts.yml", "test rules alerts_test.yml"])
def test_promtool_accepts_the_rules(arguments: str) -> None:
    command = ["promtool", *arguments.split()]
    done = subprocess.run(command, cwd=RULES.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def drain_s(words: list[str]) -> int:
    """--shutdown-timeout in a command; every option of ours in it exists."""
    options = (ROOT / "tests" / "public_names.txt").read_text(encoding="utf-8")
    flags = dict(re.findall(r"(--[\w-]+)[= ](\S+)", " ".join(words)))
    for flag in ("--predictor", "--max-queue-s"):
        assert flag in flags
        assert f"option: serve {flag}\n" in options
    return int(flags["--shutdown-timeout"])


def test_kubernetes_waits_for_the_drain() -> None:
    _, deployment = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8"))
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    before = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    ready = container["readinessProbe"]
    assert ready["httpGet"]["path"] == "/health"
    assert before >= ready["periodSeconds"] * ready["failureThreshold"]
    assert pod["terminationGracePeriodSeconds"] >= before + drain_s(container["args"]) + 20
    assert container["livenessProbe"]["httpGet"]["path"] != "/health", "a draining server must not be killed"


def test_systemd_waits_for_the_drain_and_signals_the_server_alone() -> None:
    text = (DEPLOY / "ecoserve.service").read_text(encoding="utf-8").replace("\\\n", " ")
    unit = dict(re.findall(r"^(\w+)=(.*)$", text, re.M))
    assert int(unit["TimeoutStopSec"]) >= drain_s(unit["ExecStart"].split()) + 20
    assert unit["KillMode"] == "mixed"
