"""Which level serves a configuration, decided from the model's config.json before anything is loaded."""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_model import SHAPE

from ecoserve.errors import ConfigError, RunError
from ecoserve.serving.adapter.middleware_settings import MiddlewareSettings

pytestmark = pytest.mark.filterwarnings("ignore")  # of importing vLLM and its models


@pytest.fixture(scope="module")
def server() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import vllm.model_executor.models.registry as registry

        from ecoserve.serving.adapter import server as module
    with pytest.MonkeyPatch.context() as patch:
        # vLLM looks at each model class in a process of its own, which imports all of vLLM once more.
        patch.setattr(registry, "_run_in_subprocess", lambda look: look())
        yield module


Configure = Callable[..., Any]


@pytest.fixture(scope="module")
def configure(server: Any, tmp_path_factory: pytest.TempPathFactory) -> Configure:
    """vLLM's configuration for a config.json that differs from the tiny Llama's, and flags."""

    def made(model: dict[str, Any], *flags: str) -> Any:
        folder = tmp_path_factory.mktemp("model")
        (folder / "config.json").write_text(json.dumps({**LLAMA, **model}))
        args = server.parse(str(folder), ["--skip-tokenizer-init", "--max-model-len", "512", *flags])
        server.fill_in(args, "ecoserve")
        return server.configuration(args)

    return made


LLAMA: dict[str, Any] = {
    **SHAPE,
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "float32",
    "num_hidden_layers": 4,
}
EXPERTS = {"num_experts_per_tok": 2, "num_local_experts": 4, "n_routed_experts": 4, "num_experts": 4}
MLA = {"kv_lora_rank": 64, "q_lora_rank": None, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32}
LINEAR = ["linear_attention"] * 3 + ["full_attention"]
WINDOWS = ["sliding_attention", "full_attention"] * 2


def of(architecture: str, kind: str, **more: Any) -> dict[str, Any]:
    return {"architectures": [f"{architecture}ForCausalLM"], "model_type": kind, **more}


#: model, flags, what full does not know of it (None: it knows all)
TABLE: dict[str, tuple[dict[str, Any], list[str], str | None]] = {
    "llama": ({}, [], None),
    "mixtral": (of("Mixtral", "mixtral", **EXPERTS), [], None),
    "window": (of("Mistral", "mistral", sliding_window=64), [], None),
    "no window": (of("Mistral", "mistral", sliding_window=None), [], None),
    "gpt-oss": (
        of("GptOss", "gpt_oss", sliding_window=64, layer_types=WINDOWS, **EXPERTS),
        [],
        None,
    ),
    "llama 4": (of("Llama4", "llama4_text", attention_chunk_size=64, **EXPERTS), [], None),
    "deepseek": (of("DeepseekV2", "deepseek_v2", **MLA, **EXPERTS, first_k_dense_replace=1), [], None),
    "reference windows": (
        of("DeepseekV2", "deepseek_v2", **MLA, **EXPERTS, first_k_dense_replace=1, rswa_window=64),
        [],
        r"reference sliding windows \(R-SWA\)",
    ),
    "qwen3-next": (of("Qwen3Next", "qwen3_next", layer_types=LINEAR, **EXPERTS), [], None),
    "parts of states": (
        of("Qwen3Next", "qwen3_next", layer_types=LINEAR, **EXPERTS),
        ["--enable-prefix-caching", "--prefix-match-unit", "16"],
        "--prefix-match-unit with Mamba or linear attention",
    ),
    "speculative": (
        {},
        ["--speculative-config", '{"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}'],
        None,
    ),
    "stages": ({}, ["-pp", "2"], None),
    "connector": (
        {},
        ["--kv-transfer-config", '{"kv_connector": "ExampleConnector", "kv_role": "kv_both"}'],
        None,
    ),
    "pooling": ({}, ["--runner", "pooling"], "a model that does not generate"),
}


@pytest.mark.parametrize("name", TABLE)
def test_the_level_is_chosen_from_the_configuration(server: Any, configure: Configure, name: str) -> None:
    model, flags, unknown = TABLE[name]
    config = configure(model, *flags)
    assert server.choose_level("order", "ecoserve", config) == ("order", "asked for")
    if unknown is None:
        assert server.choose_level("auto", "ecoserve", config)[0] == "full"
        assert server.choose_level("full", "orca", config)[0] == "full"
        return
    level, why = server.choose_level("auto", "ecoserve", config)
    assert level == "order"
    assert re.fullmatch(f"{unknown} is not known to level full", why)
    for asked, policy in (("full", "ecoserve"), ("auto", "orca")):
        with pytest.raises(ConfigError, match=f"{unknown} is not known to level full; --level order"):
            server.choose_level(asked, policy, config)


def test_a_models_level_is_found_by_its_folder_alone(server: Any, tiny_model: Path) -> None:
    assert server.level_of(str(tiny_model))[0] == "full"


def test_a_version_that_full_does_not_know_is_served_in_order(
    server: Any, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ecoserve.serving.adapter.policies.vllm_version", lambda: "1.7.0")
    level, why = server.choose_level("auto", "ecoserve", configure({}))
    assert level == "order"
    assert why.startswith("vLLM 1.7.0 (tested: ")


@pytest.mark.parametrize(
    ("blocks", "fits"), [(16, False), (17, True)], ids=["one too few: vLLM keeps a block", "enough"]
)
def test_too_few_blocks_are_said_before_the_model_loads(
    server: Any, configure: Configure, blocks: int, fits: bool
) -> None:
    config = configure({}, "--block-size", "32", "--num-gpu-blocks-override", str(blocks))
    if fits:
        server.check_kv_blocks(config)
        return
    with pytest.raises(ConfigError, match=r"--num-gpu-blocks-override: 16 blocks of 32 tokens .* give 17 or more"):
        server.check_kv_blocks(config)


def test_level_and_policy_must_not_contradict(server: Any) -> None:
    for policy, level in (("vllm", "full"), ("vllm", "order"), ("orca", "order")):
        with pytest.raises(ConfigError, match=f"--level: level {level} contradicts --policy {policy}"):
            server.check_policy(policy, level)
    for policy, level in (("ecoserve", "order"), ("orca", "full"), ("vllm", "auto")):
        server.check_policy(policy, level)
    with pytest.raises(ConfigError, match="--policy: policy 'fastest' is not known; one of ecoserve, "):
        server.check_policy("fastest", "auto")


def test_order_is_vllms_own_scheduler(server: Any, model_config_dir: Path) -> None:
    args = server.parse(str(model_config_dir), [])
    server.fill_in(args, "ecoserve")
    server.serve_by_priority(args)
    assert (args.scheduler_cls, args.scheduling_policy) == (None, "priority")
    assert args.middleware == [server.MIDDLEWARE]


# -- what an engine's process reports -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raised", "kind", "line"),
    [
        (ConfigError("is wrong", where="setting x", fix="mend it"), ConfigError, "setting x: is wrong; mend it"),
        (ValueError("too\n long"), ConfigError, "vLLM's engine: too long; its log above says more"),
        (MemoryError(), RunError, "vLLM's engine: MemoryError: MemoryError; its log above says more"),
    ],
)
def test_an_engines_error_becomes_the_servers(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, kind: type[Exception], line: str
) -> None:
    from vllm.v1.engine.core import EngineCoreProc

    from ecoserve.serving.adapter import engine_process

    def fails(*_: Any, **__: Any) -> None:
        raise raised

    report = tmp_path / "engine.json"
    monkeypatch.setattr(EngineCoreProc, "run_engine_core", staticmethod(fails))
    monkeypatch.setattr(engine_process, "_vllms", None)
    engine_process.report_errors(report)
    with pytest.raises(type(raised)):
        EngineCoreProc.run_engine_core(1, dp_rank=0)
    found = engine_process.engine_error(report)
    assert type(found) is kind
    assert str(found) == line
    assert engine_process.engine_error(tmp_path / "none") is None


@pytest.mark.parametrize("starting", [True, False])
def test_the_engines_error_is_the_commands(
    server: Any, model_config_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, starting: bool
) -> None:
    """vLLM's server fails while its engine starts, and just ends when its engine dies later."""
    from vllm.entrypoints.cli import serve as command

    report = tmp_path / "engine.json"
    said = {"kind": "ConfigError", "what": "is wrong", "where": "setting x", "fix": None, "input": True}

    def ends(args: Any) -> None:
        if starting:
            raise RuntimeError("Engine core initialization failed.")

    monkeypatch.setattr(command.ServeSubcommand, "cmd", staticmethod(ends))
    monkeypatch.setattr(command, "run_server", None)
    monkeypatch.setattr(server, "report_errors", lambda path: None)
    args = server.parse(str(model_config_dir), [])
    if starting:
        with pytest.raises(RunError, match="Engine core initialization failed"):
            server._run(args, report)
    report.write_text(json.dumps(said))
    with pytest.raises(ConfigError, match="setting x: is wrong"):
        server._run(args, report)


def test_what_the_configuration_did_not_show_starts_again_in_order(
    server: Any, model_config_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine finds a KV cache that it does not know once the model is loaded."""
    calls: list[list[str]] = []
    published: list[tuple[str, str]] = []

    def finds(args: Any, report: Path) -> None:
        if args.scheduling_policy != "priority":
            raise server.UnknownToFullError("a new KV cache is not known to level full")

    monkeypatch.setattr(server, "_run", finds)
    monkeypatch.setattr(server, "_stop_on_signals", lambda: None)
    monkeypatch.setattr(server, "publish_level", lambda level, why, _: published.append((level, why)))
    monkeypatch.setattr(server.os, "execv", lambda path, argv: calls.append(argv))
    monkeypatch.setattr(server.os, "environ", dict(server.os.environ))
    flags = ["--skip-tokenizer-init", "--port", "0"]
    server.serve(str(model_config_dir), MiddlewareSettings(), flags)
    assert calls == [[sys.executable, *sys.orig_argv[1:], "--level", "order"]]
    server.serve(str(model_config_dir), MiddlewareSettings(level="order"), flags)
    assert published[-1] == ("order", "a new KV cache is not known to level full")
    with pytest.raises(ConfigError, match="a new KV cache"):
        server.serve(str(model_config_dir), MiddlewareSettings(level="full"), flags)
    assert len(calls) == 1
