"""vLLM's engine and the application of its server, within a process that Ray started."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from ecoserve.errors import RunError
from ecoserve.options import checked, to_environment
from ecoserve.serving.adapter.metrics import multiprocess_dir
from ecoserve.serving.adapter.server import arguments, settle
from ecoserve.serving.cluster.app import Served, application
from ecoserve.serving.cluster.settings import RaySettings


@asynccontextmanager
async def vllm_server(settings: RaySettings) -> AsyncIterator[Served]:
    """What ``ecoserve serve`` runs, without its HTTP server.

    The ingress has predicted, so this server's middleware takes predictions from its client, who is the ingress.
    """
    from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client

    own = settings.middleware(predictor=None, trust_client=True)
    with multiprocess_dir():
        args = arguments(settings.model, own, settings.vllm, settings.policy)
        level = settle(args, own, settings.vllm, settings.policy)
        os.environ.update(to_environment(own.model_copy(update={"level": level})))
        async with build_async_engine_client(args) as engine, _started(engine, args) as app:
            cache = engine.vllm_config.cache_config

            def tokens() -> Mapping[str, int]:
                states = engine.output_processor.request_states.values()
                return {s.external_req_id: s.stats.num_generation_tokens for s in states if s.stats is not None}

            def check() -> None:
                if engine.errored:
                    raise RunError("the engine has failed", where="vLLM's engine", fix="its log says why")

            yield Served(app, tokens, check, (cache.num_gpu_blocks or 0) * cache.block_size)


@asynccontextmanager
async def _started(engine: Any, args: Any) -> AsyncIterator[Any]:
    """vLLM's application, as its server builds it."""
    from uvicorn import Config
    from uvicorn.lifespan.on import LifespanOn
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app

    tasks = await engine.get_supported_tasks()
    app = build_app(args, tasks, engine.model_config)
    await init_app_state(engine, app.state, args, tasks)
    lifespan = LifespanOn(Config(app))
    await lifespan.startup()
    if lifespan.should_exit:
        raise RunError("the server did not start", where="vLLM's server", fix="its log above says why")
    try:
        yield app
    finally:
        await lifespan.shutdown()


def build(args: dict[str, Any]) -> Any:
    """The application of a config file of Ray Serve, from its ``args``.

    Raises:
        ConfigError: for a setting that cannot be used.
    """
    return application(checked(RaySettings, args, "args"), vllm_server)
