"""``ecoserve serve``: vLLM's own server, with our scheduler and our middleware filled in.

vLLM's parser reads vLLM's flags and vLLM's ``serve`` command runs, in this process; what we add goes into the parsed
arguments. What cannot work is refused in one line before anything starts. vLLM's own command line gives the same
server::

    ECOSERVE_PREDICTOR=CKPT vllm serve MODEL \\
        --scheduler-cls ecoserve.serving.adapter.scheduler.EcoServeScheduler \\
        --middleware ecoserve.serving.adapter.middleware.PredictionMiddleware
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from ecoserve.errors import ConfigError, RunError
from ecoserve.options import to_environment
from ecoserve.serving.adapter.engine_process import engine_error, report_errors
from ecoserve.serving.adapter.event_log import EventLog
from ecoserve.serving.adapter.level_file import LEVEL, SharedFile
from ecoserve.serving.adapter.metrics import multiprocess_dir, publish_level
from ecoserve.serving.adapter.middleware_settings import MiddlewareSettings
from ecoserve.serving.adapter.open_responses import OpenResponses
from ecoserve.serving.adapter.policies import (
    MIDDLEWARE,
    REPLAY,
    SCHEDULER,
    Level,
    UnknownToFullError,
    choose_level,
)
from ecoserve.serving.adapter.vllm_flags import complaint, line_of, parse
from ecoserve.serving.core.policies import DEFAULT, POLICIES
from ecoserve.serving.core.settings import CONFIG_KEY, SchedulerSettings

#: vLLM's own scheduler, for comparisons: everything else stays the same.
STOCK: Final = "vllm"
#: Set for the start in level ``order`` that follows one in which the engine refused level ``full``: why.
_FOUND: Final = "_ECOSERVE_FOUND"
_OR_STOCK: Final = f"leave it out, or give --policy {STOCK}"
#: GiB of KV cache on a CPU by default. vLLM's own default, 92 % of all memory, does not start.
_CPU_KV_GIB: Final = 4


def serve(
    model: str,
    settings: MiddlewareSettings | None = None,
    vllm_flags: Sequence[str] = (),
    *,
    policy: str = "ecoserve",
) -> None:
    """Check everything, then run vLLM's server until it is stopped.

    Args:
        model: folder or hub id of the model. settings: of the middleware.
        vllm_flags: as on vLLM's own command line.
        policy: the scheduling policy; :data:`STOCK` for vLLM's own scheduler.

    Raises:
        InputError: for anything that cannot work, before the server starts.
        RunError: if the server fails.
        SystemExit: 128 + number of the signal that came before it served. Once it serves, SIGTERM ends it.
    """
    settings = settings or MiddlewareSettings()
    _stop_on_signals()
    check_policy(policy, settings.level)
    check_model(model)
    if settings.predictor is not None:
        from ecoserve.serving.adapter.prediction_service import shared_predictor

        # Kept: the middleware of a server in this process uses the same object.
        shared_predictor(settings.predictor)
    if settings.learn is not None:
        from ecoserve.serving.adapter.learner import locked

        locked(Path(settings.learn)).close()
    try:
        with multiprocess_dir() as folder:
            args = arguments(model, settings, vllm_flags, policy)
            check_address(args)
            level = settle(args, settings, vllm_flags, policy)
            if settings.shadow:
                SharedFile.of_this_server(LEVEL).write("shadow")
            os.environ.update(to_environment(settings.model_copy(update={"level": level})))
            _run(args, Path(folder) / "engine.json")
    except UnknownToFullError as error:
        if settings.level != "auto" or policy != DEFAULT:
            raise
        # The model's configuration did not show it: once more, in level order.
        os.environ[_FOUND] = error.what
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:], "--level", "order"])


def arguments(model: str, settings: MiddlewareSettings, vllm_flags: Sequence[str], policy: str) -> Namespace:
    """vLLM's arguments with our parts in them. Raises ConfigError for flags that cannot work."""
    args = parse(model, vllm_flags)
    fill_in(args, policy, replay=settings.replay)
    refuse_unsupported(args, os.environ)
    if settings.learn is not None:
        refuse_learning(args)
    return args


def settle(args: Namespace, settings: MiddlewareSettings, vllm_flags: Sequence[str], policy: str) -> str:
    """Resolve vLLM's configuration as its server will; returns the level that serves, for which ``args`` are changed.

    Raises:
        ConfigError: for a configuration that cannot work. UnknownToFullError: for one that needs another level.
    """
    if note := cpu_defaults(args):
        print(note, file=sys.stderr)
    config = configuration(args, vllm_flags)
    check_kv_blocks(config)
    level: str = settings.level
    if policy != STOCK:
        level, why = choose_level(settings.level, policy, config)
        why = os.environ.pop(_FOUND, why)
        publish_level(level, why, str(config.model_config.served_model_name))
        if level == "order":
            serve_by_priority(args)
            print(f"ecoserve: level order: {why}", file=sys.stderr)
    if settings.shadow and policy == STOCK:
        raise ConfigError(f"policy {STOCK} leaves nothing to shadow", where="--shadow", fix=_OR_STOCK)
    return level


def level_of(model: str) -> tuple[Level, str]:
    """The level that would serve ``model`` by default, and why.

    Raises:
        ConfigError: if it is no model, or vLLM refuses it.
    """
    check_model(model)
    args = parse(model, ())
    fill_in(args, DEFAULT)
    return choose_level("auto", DEFAULT, configuration(args))


def check_model(model: str) -> None:
    """See that there is a model, without downloading anything.

    Raises:
        ConfigError: if ``model`` is a path that is no model, or a hub id that would need the hub when offline.
    """
    path = Path(model).expanduser()
    if path.exists():
        if path.is_dir() and not (path / "config.json").is_file() and not list(path.glob("*.gguf")):
            raise ConfigError("is no model: it has no config.json", where=model)
        return
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise ConfigError("there is no such model folder", where=model, fix="give a folder, or a hub id owner/name")
    from huggingface_hub import constants, try_to_load_from_cache

    if constants.HF_HUB_OFFLINE and not isinstance(try_to_load_from_cache(model, "config.json"), str):
        raise ConfigError("is not in the local cache, and HF_HUB_OFFLINE is set", where=model, fix="give a folder")


def check_policy(policy: str, level: str) -> None:
    """See that there is such a policy, and that it can be served at the level that is asked for.

    Raises:
        ConfigError: if not.
    """
    if policy != STOCK and policy not in POLICIES:
        raise ConfigError(
            f"policy {policy!r} is not known", where="--policy", fix=f"one of {', '.join((*POLICIES, STOCK))}"
        )
    if level != "auto" and (policy == STOCK or (level == "order" and policy != DEFAULT)):
        raise ConfigError(f"level {level} contradicts --policy {policy}", where="--level", fix="leave one of them out")


def fill_in(args: Namespace, policy: str, *, replay: bool = False) -> None:
    """Put our parts into vLLM's parsed arguments, as for level ``full``.

    Raises:
        ConfigError: for a policy or scheduler setting that is not known, or flags of the operator that contradict.
    """
    place = f"--additional-config {CONFIG_KEY}"
    given = args.additional_config or {}
    own = given.get(CONFIG_KEY, {}) if isinstance(given, Mapping) else None
    if not isinstance(own, Mapping):
        raise ConfigError(f"is not a JSON object, or its key {CONFIG_KEY} is not", where="--additional-config")
    if policy == STOCK and own:
        raise ConfigError(f"policy {STOCK} is vLLM's own scheduler, which takes no settings of ours", where=place)
    if policy != STOCK:
        if args.scheduler_cls not in (None, SCHEDULER):
            raise ConfigError(
                f"{args.scheduler_cls} cannot be used together with policy {policy}",
                where="--scheduler-cls",
                fix=_OR_STOCK,
            )
        if own.get("policy", policy) != policy:
            raise ConfigError(f"policy {own['policy']} contradicts --policy {policy}", where=place)
        own = {**own, "policy": policy}
        chosen = SchedulerSettings.parse(own, lambda name: f"{place}.{name}")
        if chosen.event_log is not None:
            EventLog(chosen.event_log, chosen.event_log_mb).close()
        args.scheduler_cls = SCHEDULER
        args.additional_config = {**given, CONFIG_KEY: own}
    if MIDDLEWARE not in args.middleware:
        # The last one is the outermost; an operator's own middleware sees requests as clients sent them.
        args.middleware = [MIDDLEWARE, *args.middleware]
    if replay:
        if any((args.speculative_config, args.spec_method, args.spec_model, args.spec_tokens)):
            raise ConfigError(
                "recorded lengths cannot be forced together with speculative decoding",
                where="--speculative-config",
                fix="leave out one of it and --replay",
            )
        args.logits_processors = [*(args.logits_processors or []), REPLAY]


def serve_by_priority(args: Namespace) -> None:
    """Level ``order``: vLLM's own scheduler by the priorities that the middleware sets."""
    args.scheduler_cls = None
    args.scheduling_policy = "priority"


def refuse_unsupported(args: Namespace, environment: Mapping[str, str]) -> None:
    """Refuse what does not work with ``ecoserve serve``.

    Raises:
        ConfigError: naming the first flag or variable that cannot be used.
    """
    rust = environment.get("VLLM_USE_RUST_FRONTEND", "0").lower() not in ("", "0", "false")
    no_middleware = "is not supported: it has no place for the prediction middleware"
    given = vars(args).get  # not every version has every flag
    checks: list[tuple[Any, str, str]] = [
        (given("grpc") or given("grpc_port") is not None, "--grpc", f"the gRPC front end {no_middleware}"),
        (rust, "VLLM_USE_RUST_FRONTEND", f"the Rust front end {no_middleware}"),
        (given("headless"), "--headless", "engines without an API server are not supported"),
        (given("data_parallel_multi_port_external_lb"), "--data-parallel-multi-port-external-lb", "is not supported"),
    ]
    for found, flag, what in checks:
        if found:
            raise ConfigError(what, where=flag, fix="leave it out")


def refuse_learning(args: Namespace) -> None:
    """Refuse what ``--learn`` does not work with.

    Raises:
        ConfigError: naming the flag.
    """
    if (args.api_server_count or args.data_parallel_size) > 1:
        what = "--learn needs one API server, several would learn apart"
        raise ConfigError(what, where="--api-server-count", fix="give --api-server-count 1")
    if args.disable_log_stats:
        what = "--learn has the lengths of responses from these statistics"
        raise ConfigError(what, where="--disable-log-stats", fix="leave it out")


def check_address(args: Namespace) -> None:
    """See that the server can listen at its address.

    Raises:
        ConfigError: if the port or socket is in use, or the address is not this machine's.
    """
    if args.uds:
        if os.path.exists(args.uds):
            raise ConfigError("exists already", where=f"--uds {args.uds}", fix="remove it, or name another")
        return
    host = args.host or ""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, args.port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ConfigError(
                    f"port {args.port} is in use", where="--port", fix="stop what listens there, or name another"
                ) from error
            raise ConfigError(line_of(error), where=f"--host {host} --port {args.port}") from error


def cpu_defaults(args: Namespace) -> str | None:
    """On a CPU, choose the KV cache's size where vLLM would not start without a choice; returns a note about it."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform

    default = AsyncEngineArgs.gpu_memory_utilization
    chosen = args.kv_cache_memory_bytes is not None or args.gpu_memory_utilization != default
    if not current_platform.is_cpu() or chosen or "VLLM_CPU_KVCACHE_SPACE" in os.environ:
        return None
    free_gib = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    size = max(1, min(_CPU_KV_GIB, int(free_gib / 4)))
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(size)
    return f"ecoserve: {size} GiB for the KV cache; set VLLM_CPU_KVCACHE_SPACE to change it"


def configuration(args: Namespace, flags: Sequence[str] = ()) -> Any:
    """vLLM's configuration as its server will resolve it, so that a refusal is one line.

    Raises:
        ConfigError: in vLLM's words, about one of ``flags`` if it is about one.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.reasoning import ReasoningParserManager
    from vllm.usage.usage_lib import UsageContext

    try:
        if args.reasoning_parser_plugin:
            # The server will import it too, but only later.
            ReasoningParserManager.import_reasoning_parser(args.reasoning_parser_plugin)
        ServeSubcommand().validate(args)
        return AsyncEngineArgs.from_cli_args(args).create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    except (ValueError, TypeError, KeyError, OSError, NotImplementedError) as error:
        raise complaint(error, flags, "vLLM refuses these settings") from error


def check_kv_blocks(config: Any) -> None:
    """See that one request of the longest length fits, where the number and size of KV blocks are given.

    Raises:
        ConfigError: with the number that is needed.
    """
    cache, model, parallel = config.cache_config, config.model_config, config.parallel_config
    if cache.num_gpu_blocks_override is None or not cache.user_specified_block_size:
        return
    bounded = (model.get_sliding_window(), model.attention_chunk_size, model.rswa_window)
    ranks = parallel.decode_context_parallel_size * parallel.prefill_context_parallel_size
    if any(bounded) or model.is_hybrid or model.is_attention_free or ranks > 1:
        return  # a request needs less than its length
    longest = model.max_model_len
    needed = -(-longest // cache.block_size) + 1  # one is vLLM's null block
    if cache.num_gpu_blocks_override < needed:
        raise ConfigError(
            f"{cache.num_gpu_blocks_override} blocks of {cache.block_size} tokens do not hold one request of "
            f"max_model_len {longest}",
            where="--num-gpu-blocks-override",
            fix=f"give {needed} or more, or lower --max-model-len",
        )


def _run(args: Namespace, report: Path) -> None:
    """vLLM's server. An error that ends the engine's process is in ``report``, and becomes ours."""
    from vllm import logger
    from vllm.entrypoints.cli import serve as command

    if hasattr(logger, "configure_logging_from_args"):  # 0.30 has no such flags
        logger.configure_logging_from_args(args)
    command.run_server = _run_server
    report_errors(report)
    try:
        command.ServeSubcommand.cmd(args)
    except (RuntimeError, ValueError, OSError) as error:
        raise engine_error(report) or RunError(
            line_of(error), where="vLLM's server", fix="its log above says more"
        ) from error
    if (ended := engine_error(report)) is not None:  # while it served
        raise ended


async def _run_server(args: Namespace, **uvicorn_flags: Any) -> None:
    """vLLM's server with one API process, able to stop while it starts.

    In its place vLLM turns SIGTERM into KeyboardInterrupt, swallows that where it waits for its engine, and goes on
    waiting for up to ten minutes. :class:`SystemExit` gets through. Once it serves, its event loop takes signals.
    """
    from vllm.entrypoints.launchers.api_server.entry import run_server_worker, setup_server
    from vllm.utils.system_utils import decorate_logs

    decorate_logs("APIServer", skip_if_decorated=True)
    _stop_on_signals()
    address, listener = setup_server(args, reuse_port=False)
    await run_server_worker(address, listener, args, **uvicorn_flags)
    if OpenResponses.engine_failed:
        raise RunError("the engine has failed", where="vLLM's server", fix="its log above says why")


def _stop_on_signals() -> None:
    def stop(number: int, frame: Any) -> NoReturn:
        raise SystemExit(128 + number)

    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, stop)
