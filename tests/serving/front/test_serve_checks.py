"""What ``ecoserve serve`` says before anything starts, and what it hands to vLLM."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import warnings
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from front_helpers import ROOT, free_port

from ecoserve.cli.main import main
from ecoserve.errors import ConfigError
from ecoserve.options import to_environment, variable
from ecoserve.serving.adapter.middleware_settings import MiddlewareSettings

pytestmark = pytest.mark.filterwarnings("ignore")  # of importing vLLM


@pytest.fixture(scope="module")
def server() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ecoserve.serving.adapter import server as module
    return module


def filled(server: Any, model: Path, *flags: str, policy: str = "ecoserve", replay: bool = False) -> Namespace:
    args: Namespace = server.parse(str(model), flags)
    server.fill_in(args, policy, replay=replay)
    return args


def test_our_parts_are_filled_in_beside_the_operators(server: Any, model_config_dir: Path) -> None:
    args = filled(
        server,
        model_config_dir,
        *("--additional-config", '{"other": 1, "ecoserve": {"reserve": 0.1}}'),
        *("--middleware", "my.Middleware", "--logits-processors", "my:Processor", "--port", "1234"),
        replay=True,
    )
    assert args.scheduler_cls == server.SCHEDULER
    assert args.additional_config == {"other": 1, "ecoserve": {"policy": "ecoserve", "reserve": 0.1}}
    assert args.middleware == [server.MIDDLEWARE, "my.Middleware"]
    assert args.logits_processors == ["my:Processor", server.REPLAY]
    assert (args.port, args.shutdown_timeout, args.model) == (1234, 5, str(model_config_dir))


def test_the_operators_choice_stands(server: Any, model_config_dir: Path) -> None:
    args = filled(
        server,
        model_config_dir,
        *("--shutdown-timeout", "0", "--scheduler-cls", server.SCHEDULER, "--middleware", server.MIDDLEWARE),
    )
    assert args.shutdown_timeout == 0
    assert args.middleware == [server.MIDDLEWARE]
    assert args.logits_processors is None


def test_recorded_lengths_do_not_go_with_drafts(server: Any, model_config_dir: Path) -> None:
    drafts = ("--speculative-config", '{"method": "ngram", "num_speculative_tokens": 2}')
    filled(server, model_config_dir, *drafts)
    with pytest.raises(ConfigError, match="--speculative-config: recorded lengths cannot be forced"):
        filled(server, model_config_dir, *drafts, replay=True)


def test_the_stock_policy_is_vllms_own_scheduler(server: Any, model_config_dir: Path) -> None:
    args = filled(server, model_config_dir, "--scheduler-cls", "my.Scheduler", policy="vllm")
    assert args.scheduler_cls == "my.Scheduler"
    assert filled(server, model_config_dir, policy="vllm").scheduler_cls is None


@pytest.mark.parametrize(
    ("flags", "policy", "said"),
    [
        (["--scheduler-cls", "my.Scheduler"], "ecoserve", "--scheduler-cls"),
        (["--additional-config", '{"ecoserve": {"policy": "ecoserve-d"}}'], "ecoserve", "contradicts"),
        (
            ["--additional-config", '{"ecoserve": {"reserve": 7}}'],
            "ecoserve",
            "--additional-config ecoserve.reserve: must be less than 0.5, not '7'",
        ),
        (
            ["--additional-config", '{"ecoserve": {"zed": 7}}'],
            "ecoserve",
            r"\.zed: there is no such setting; one of policy,",
        ),
        (["--additional-config", '{"ecoserve": 5}'], "ecoserve", "--additional-config"),
        (["--additional-config", "{"], "ecoserve", "--additional-config"),
        (["--additional-config", '{"ecoserve": {"reserve": 0.1}}'], "vllm", "no settings of ours"),
        (["--additional-config", '{"ecoserve": {"event_log": "/proc/none/events"}}'], "ecoserve", "cannot be written"),
    ],
)
def test_contradictions_are_refused(
    server: Any, model_config_dir: Path, flags: list[str], policy: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        filled(server, model_config_dir, *flags, policy=policy)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--grpc"], "gRPC"),
        (["--headless"], "API server"),
    ],
)
def test_what_is_not_supported_is_refused(server: Any, model_config_dir: Path, flags: list[str], said: str) -> None:
    args = filled(server, model_config_dir, *flags)
    with pytest.raises(ConfigError, match=said):
        server.refuse_unsupported(args, {})


@pytest.mark.parametrize(
    ("flags", "said"),
    [(["--api-server-count", "2"], "--api-server-count: --learn needs one"), (["--disable-log-stats"], "statistics")],
)
def test_what_learning_does_not_work_with_is_refused(
    server: Any, model_config_dir: Path, flags: list[str], said: str
) -> None:
    server.refuse_learning(filled(server, model_config_dir))
    with pytest.raises(ConfigError, match=said):
        server.refuse_learning(filled(server, model_config_dir, *flags))


def test_the_rust_front_end_is_refused(server: Any, model_config_dir: Path) -> None:
    args = filled(server, model_config_dir)
    server.refuse_unsupported(args, {"VLLM_USE_RUST_FRONTEND": "0"})
    with pytest.raises(ConfigError, match="Rust"):
        server.refuse_unsupported(args, {"VLLM_USE_RUST_FRONTEND": "1"})


def test_a_version_without_the_flags_that_are_refused_passes(server: Any) -> None:
    """vLLM 0.31 has no --grpc-port."""
    server.refuse_unsupported(Namespace(), {})


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("--no-such-flag 3", "--no-such-flag: there is no such option; ecoserve serve --help=all lists all options"),
        ("--max-num-sqes=3", "--max-num-sqes: there is no such option; did you mean --max-num-seqs?"),
        ("--predict-batc 3", "--predict-batc: there is no such option; did you mean --predict-batch?"),
        ("--port many", "--port: invalid int value: 'many'; ecoserve serve --help=all lists all options"),
        ("--dtype half -tp", "-tp: expected one argument; ecoserve serve --help=all lists all options"),
        ("--max_num_seqs x", "--max_num_seqs: invalid int value: 'x'; ecoserve serve --help=all lists all options"),
        ("another-model", "another-model: belongs to no option; ecoserve serve --help=all lists all options"),
    ],
)
def test_what_vllm_does_not_take_names_the_option_as_typed(
    server: Any, model_config_dir: Path, typed: str, said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        server.parse(str(model_config_dir), typed.split())
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("--max-model-len 99999999", r"--max-model-len: .*max_model_len"),
        ("--gpu_memory_utilization 7", r"--gpu_memory_utilization: must be less than or equal to 1, not '7.0'$"),
        # vLLM complains about what it makes of the option.
        ("--max-num-seqs -1", r"vLLM refuses these settings: --max-num-\S+: must be .*; given: --max-num-seqs -1$"),
    ],
)
def test_what_vllm_refuses_names_the_option_as_typed(server: Any, tiny_model: Path, typed: str, said: str) -> None:
    args = filled(server, tiny_model, *typed.split())
    with pytest.raises(ConfigError, match=said) as caught:
        server.configuration(args, typed.split())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("word", "there", "not_there"),
    [
        ("all", ["--predict-batch", "--max-num-seqs", "--kv-cache-dtype"], []),
        ("KV", ["--kv-cache-dtype", "--kv-transfer-config"], ["--predict-batch", "--max-num-seqs"]),
        ("queue", ["--max-queue-s", "--max-num-queued-reqs"], ["--kv-cache-dtype"]),
    ],
)
def test_help_shows_our_options_and_vllms(
    word: str, there: list[str], not_there: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", f"--help={word}"]) == 0
    shown = capsys.readouterr().out
    assert [o for o in there if f"  {o}" not in shown] == []
    assert [o for o in not_there if f"  {o}" in shown] == []
    assert "\\[" not in shown


def test_models_that_are_not_there(server: Any, tmp_path: Path, model_config_dir: Path) -> None:
    server.check_model(str(model_config_dir))
    for model, said in (
        (str(tmp_path / "none"), "no such model folder"),
        (str(tmp_path), "no config.json"),
        ("./none", "no such model folder"),
        ("no-owner/no-such-model", "local cache"),
    ):
        with pytest.raises(ConfigError, match=said):
            server.check_model(model)


def test_ports_and_sockets_in_use(server: Any, model_config_dir: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with pytest.raises(ConfigError, match=f"port {port} is in use"):
            server.check_address(server.parse(str(model_config_dir), ["--port", port]))
    server.check_address(server.parse(str(model_config_dir), ["--port", str(free_port())]))
    with pytest.raises(ConfigError, match=r"--host 203.0.113.7"):
        server.check_address(server.parse(str(model_config_dir), ["--host", "203.0.113.7"]))
    (tmp_path / "socket").touch()
    with pytest.raises(ConfigError, match="exists already"):
        server.check_address(server.parse(str(model_config_dir), ["--uds", str(tmp_path / "socket")]))


def test_a_cpu_gets_memory_for_its_kv_only_where_none_is_set(
    server: Any, model_config_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    chosen = server.parse(str(model_config_dir), ["--gpu-memory-utilization", "0.3"])
    assert server.cpu_defaults(chosen) is None
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        pytest.skip("no CPU build of vLLM")
    note = server.cpu_defaults(server.parse(str(model_config_dir), []))
    assert note is not None
    assert note.startswith(f"ecoserve: {os.environ['VLLM_CPU_KVCACHE_SPACE']} GiB")
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE")


@pytest.fixture
def own_process() -> Iterator[None]:
    """What a server changes of its process is as before."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with pytest.MonkeyPatch.context() as patch:
        for name in (variable(name) for name in MiddlewareSettings.model_fields):
            patch.setenv(name, "")
            patch.delenv(name)
        patch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def in_a_process(arguments: list[str]) -> tuple[int, str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "ecoserve.cli.main", *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=300)
    return done.returncode, done.stderr


@pytest.mark.usefixtures("own_process")
def test_bad_input_ends_in_one_line_and_exit_code_2(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def in_this_process(arguments: list[str]) -> tuple[int, str]:
        code = main(arguments)
        return code, capsys.readouterr().err

    broken = tmp_path / "checkpoint"
    broken.mkdir()
    (broken / "config.json").write_text('{"format_version": 1, "backend"')
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for call, arguments, said in (
            (in_a_process, [str(tmp_path / "none")], "no such model folder"),
            (in_this_process, [str(tiny_model), "--predictor", str(tmp_path / "none")], "none"),
            (in_this_process, [str(tiny_model), "--predictor", str(broken)], "config.json"),
            (in_this_process, [str(tiny_model), "--port", port], f"port {port} is in use"),
            (in_a_process, ["--port", port, str(tiny_model)], "model comes before"),
        ):
            code, printed = call(["serve", *arguments])
            assert code == 2, printed
            lines = [line for line in printed.splitlines() if line.startswith("error:")]
            assert len(lines) == 1
            assert said in lines[0]
            assert "Traceback" not in printed


@pytest.mark.engine
def test_vllm_does_not_start_where_one_request_would_not_fit(tiny_model: Path) -> None:
    """So no request can need more blocks than there are: max_model_len bounds it, in the API server."""
    from ecoserve.serving.engine_run import EngineRunSettings, run_engine

    settings = EngineRunSettings(
        model=str(tiny_model), trace="synthetic:20", rate_rps=1, max_model_len=1024, block_size=32, blocks=31, threads=1
    )
    with pytest.raises(ConfigError, match="KV cache"):
        run_engine(settings)


def test_settings_reach_the_server_by_environment() -> None:
    front = MiddlewareSettings(predictor="x", predict_timeout_ms=80, trust_client=True, replay=True)
    assert json.loads(json.dumps(to_environment(front))) == {
        "ECOSERVE_PREDICTOR": "x",
        "ECOSERVE_PREDICT_TIMEOUT_MS": "80.0",
        "ECOSERVE_TRUST_CLIENT": "1",
        "ECOSERVE_REPLAY": "1",
    }


def test_every_setting_is_documented_with_its_default() -> None:
    text = (ROOT / "docs" / "guides" / "serving.md").read_text()
    rows = dict(re.findall(r"^\| `(ECOSERVE_\w+)` \| (\S*) ?\|", text, re.MULTILINE))
    defaults = {variable(name): field.default for name, field in MiddlewareSettings.model_fields.items()}
    assert rows.keys() == defaults.keys()
    for name, default in defaults.items():
        assert rows[name] == (
            "" if default is None else default if isinstance(default, str) else f"{float(default or 0):.10g}"
        )
