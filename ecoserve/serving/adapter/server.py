"""``ecoserve serve``: vLLM's own server, with our scheduler and our middleware filled in.

Rule: vLLM's parser reads vLLM's flags and vLLM's ``serve`` command runs, in this process; what we add goes into the
parsed arguments. What cannot work is said before anything starts, in one line. The same server comes from vLLM's own
command line::

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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from pydantic import BaseModel, ConfigDict, Field

from ecoserve.errors import ConfigError, RunError
from ecoserve.serving.adapter.metrics import multiprocess_dir
from ecoserve.serving.adapter.middleware_settings import MiddlewareSettings
from ecoserve.serving.adapter.scope import refuse_configuration

SCHEDULER: Final = "ecoserve.serving.adapter.scheduler.EcoServeScheduler"
MIDDLEWARE: Final = "ecoserve.serving.adapter.middleware.PredictionMiddleware"
REPLAY: Final = "ecoserve.serving.adapter.replay:ReplayLogitsProcessor"
#: vLLM's own scheduler, for comparisons: everything else stays the same.
STOCK: Final = "vllm"
#: Seconds that open requests get to end after SIGTERM. vLLM's default, 0, cuts them at once, and its server can then
#: hang on an open stream.
SHUTDOWN_TIMEOUT_S: Final = 5
#: GiB of KV on a CPU, where the operator does not say: vLLM wants 92 % of all memory then, and does not start.
_CPU_KV_GIB: Final = 4


class ServeOptions(BaseModel):
    """What ``ecoserve serve`` itself is told; everything else is vLLM's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(description="folder or hub id of the model to serve")
    policy: str = Field("ecoserve", description="scheduling policy; vllm for vLLM's own scheduler")
    front: MiddlewareSettings = MiddlewareSettings()


def serve(options: ServeOptions, vllm_flags: Sequence[str] = (), say: Callable[[str], None] | None = None) -> None:
    """Check everything, then run vLLM's server until it is stopped.

    Args:
        options: ours.
        vllm_flags: vLLM's, as on its own command line.
        say: where notes for the operator go.

    Raises:
        InputError: for anything that cannot work, before the server starts.
        RunError: if the server fails.
        SystemExit: 128 + number of the signal that came before it served. Once it serves, SIGTERM is the way to end.
    """
    tell = say or (lambda line: print(line, file=sys.stderr))
    _stop_on_signals()
    check_model(options.model)
    if options.front.predictor is not None:
        from ecoserve.serving.adapter.prediction_service import shared_predictor

        # Kept: the middleware of a server in this process uses the same object.
        shared_predictor(options.front.predictor)
    with multiprocess_dir():
        os.environ.update(options.front.to_environment())
        args = parse(options.model, vllm_flags)
        fill_in(args, options)
        refuse_unsupported(args, os.environ, ours=options.policy != STOCK)
        check_address(args)
        if note := cpu_defaults(args):
            tell(note)
        check_with_vllm(args, ours=options.policy != STOCK)
        _run(args)


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


def parse(model: str, flags: Sequence[str]) -> Namespace:
    """Read vLLM's flags with vLLM's own parser for ``vllm serve``.

    Raises:
        ConfigError: for flags that vLLM does not know or accept.
    """
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    parser = FlexibleArgumentParser(prog="ecoserve")
    own = ServeSubcommand().subparser_init(parser.add_subparsers(dest="subparser"))

    def refuse(message: str) -> NoReturn:
        raise ConfigError(message, where="vLLM flags", fix="all of them: vllm serve --help=all")

    parser.error = own.error = refuse
    own.set_defaults(shutdown_timeout=SHUTDOWN_TIMEOUT_S)
    try:
        args: Namespace = parser.parse_args(["serve", model, *flags])
    except (ValueError, TypeError, OSError) as error:
        raise ConfigError(_line(error), where="vLLM flags") from error
    args.model = model
    return args


def fill_in(args: Namespace, options: ServeOptions) -> None:
    """Put our parts into vLLM's parsed arguments.

    Raises:
        ConfigError: if the operator gave something else in their place, or a policy or knob that is not known.
    """
    from ecoserve.serving.adapter.settings import CONFIG_KEY, POLICIES, SchedulerSettings

    if options.policy != STOCK and options.policy not in POLICIES:
        known = ", ".join((*POLICIES, STOCK))
        raise ConfigError(f"policy {options.policy!r} is not known", where="--policy", fix=f"one of {known}")
    given = args.additional_config or {}
    own = given.get(CONFIG_KEY, {}) if isinstance(given, Mapping) else None
    if not isinstance(own, Mapping):
        raise ConfigError("is no JSON object, or its ecoserve part is none", where="--additional-config")
    own = dict(own)
    if options.policy == STOCK:
        if own:
            raise ConfigError(
                f"policy {STOCK} is vLLM's own scheduler, which takes no settings of ours",
                where=f"--additional-config {CONFIG_KEY}",
            )
    else:
        if args.scheduler_cls not in (None, SCHEDULER):
            raise ConfigError(
                f"{args.scheduler_cls} cannot be used together with policy {options.policy}",
                where="--scheduler-cls",
                fix=f"leave it out, or give --policy {STOCK}",
            )
        if own.get("policy", options.policy) != options.policy:
            raise ConfigError(
                f"policy {own['policy']} contradicts --policy {options.policy}",
                where=f"--additional-config {CONFIG_KEY}",
            )
        own["policy"] = options.policy
        SchedulerSettings.parse(own)
        args.scheduler_cls = SCHEDULER
        args.additional_config = {**given, CONFIG_KEY: own}
    if MIDDLEWARE not in args.middleware:
        # The last one is the outermost; an operator's own middleware sees requests as clients sent them.
        args.middleware = [MIDDLEWARE, *args.middleware]
    if options.front.replay:
        args.logits_processors = [*(args.logits_processors or []), REPLAY]


def refuse_unsupported(args: Namespace, environment: Mapping[str, str], *, ours: bool) -> None:
    """Refuse what our parts do not work with.

    Args:
        args: vLLM's parsed arguments.
        environment: of the process.
        ours: whether our scheduler runs; vLLM's own supports more.

    Raises:
        ConfigError: naming the first flag that does not go together with ``ecoserve serve``.
    """
    no_middleware = "it has no place for the prediction middleware"
    rust = environment.get("VLLM_USE_RUST_FRONTEND", "0").lower() not in ("", "0", "false")
    checks: list[tuple[Any, str, str]] = [
        (args.grpc or args.grpc_port is not None, "--grpc", f"gRPC front ends are not supported: {no_middleware}"),
        (rust, "VLLM_USE_RUST_FRONTEND", f"the Rust front end is not supported: {no_middleware}"),
        (args.headless, "--headless", "engines without an API server are not supported"),
        (args.data_parallel_multi_port_external_lb, "--data-parallel-multi-port-external-lb", "is not supported"),
    ]
    scheduler: set[str] = set()
    if ours:
        speculative = any((args.speculative_config, args.spec_method, args.spec_model, args.spec_tokens))
        own = [
            (speculative, "--speculative-config", "speculative decoding is not supported"),
            (args.kv_transfer_config, "--kv-transfer-config", "KV connectors are not supported"),
            (args.ec_transfer_config, "--ec-transfer-config", "encoder-cache connectors are not supported"),
            (args.pipeline_parallel_size > 1, "--pipeline-parallel-size", "pipeline parallelism is not supported"),
        ]
        checks += own
        scheduler = {flag for _, flag, _ in own}
    for found, flag, what in checks:
        if found:
            raise ConfigError(
                what, where=flag, fix=f"leave it out{f', or give --policy {STOCK}' * (flag in scheduler)}"
            )


def check_address(args: Namespace) -> None:
    """See that the server can listen where it shall.

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
            raise ConfigError(_line(error), where=f"--host {host} --port {args.port}") from error


def cpu_defaults(args: Namespace) -> str | None:
    """On a CPU, choose the KV's memory where vLLM would not start without a choice; returns a note about it."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform

    default = AsyncEngineArgs.gpu_memory_utilization
    chosen = args.kv_cache_memory_bytes is not None or args.gpu_memory_utilization != default
    if not current_platform.is_cpu() or chosen or "VLLM_CPU_KVCACHE_SPACE" in os.environ:
        return None
    free_gib = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    size = max(1, min(_CPU_KV_GIB, int(free_gib / 4)))
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(size)
    return f"ecoserve: {size} GiB for the KV cache; VLLM_CPU_KVCACHE_SPACE says otherwise"


def check_with_vllm(args: Namespace, *, ours: bool) -> None:
    """Let vLLM resolve its configuration as its server will, so that what it refuses is said in one line.

    Args:
        args: vLLM's parsed arguments.
        ours: whether our scheduler runs, which supports less.

    Raises:
        ConfigError: in vLLM's words, or in ours where our scheduler cannot serve the model.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import validate_parsed_serve_args
    from vllm.usage.usage_lib import UsageContext

    try:
        validate_parsed_serve_args(args)
        config = AsyncEngineArgs.from_cli_args(args).create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    except (ValueError, TypeError, KeyError, OSError, NotImplementedError) as error:
        raise ConfigError(_line(error), where="vLLM refuses these settings") from error
    if ours:
        refuse_configuration(config)


def _run(args: Namespace) -> None:
    from vllm.entrypoints.cli import serve as command
    from vllm.logger import configure_logging_from_args

    configure_logging_from_args(args)
    command.run_server = _run_server
    try:
        command.ServeSubcommand.cmd(args)
    except (RuntimeError, ValueError, OSError) as error:
        raise RunError(_line(error), where="vLLM's server", fix="its log above says more") from error


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


def _stop_on_signals() -> None:
    def stop(number: int, frame: Any) -> NoReturn:
        raise SystemExit(128 + number)

    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, stop)


def _line(error: BaseException) -> str:
    """What a vLLM or pydantic error says, without the pages around it."""
    text = str(error)
    if isinstance(error, ValueError) and hasattr(error, "errors"):
        details = error.errors()
        if details:
            text = str(details[0].get("msg", text)).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return " ".join(text.split())[:400] or type(error).__name__
