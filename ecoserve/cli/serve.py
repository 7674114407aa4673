"""``ecoserve serve``: vLLM's server with predicted lengths and our scheduler."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ecoserve.cli.options import takes
from ecoserve.serving.adapter.middleware_settings import MiddlewareSettings


@takes(MiddlewareSettings, "predictor learn level shadow trust_client replay")
@takes(
    MiddlewareSettings,
    "predict_timeout_ms predict_window_ms predict_batch predict_waiting predict_threads",
    panel="Predictions",
)
@takes(MiddlewareSettings, "max_queue_s max_body_bytes", panel="Limits")
@takes(
    MiddlewareSettings,
    "client_slos slo_min_ttft_ms slo_min_tpot_ms slo_scale unloaded_ttft_ms unloaded_tpot_ms",
    panel="SLOs (clients: headers x-slo-ttft-ms, x-slo-tpot-ms)",
)
def command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model to serve: a folder, or a hub id.")],
    *,
    policy: Annotated[
        str, typer.Option("--policy", help="Scheduling policy; vllm for vLLM's own scheduler.")
    ] = "ecoserve",
    **given: Any,
) -> None:
    """Serve MODEL with vLLM, its requests scheduled by predicted response lengths.

    Any flag of `vllm serve` may follow and is passed on. MODEL comes first.

    `--help=all` lists vLLM's flags too, `--help=kv` all options whose names have "kv".
    """
    from ecoserve.errors import ConfigError
    from ecoserve.serving.adapter.server import serve

    if model.startswith("-"):
        raise ConfigError(f"the model comes before {model}", where="ecoserve serve", fix="ecoserve serve MODEL [flags]")
    serve(model, MiddlewareSettings.read(options=given), context.args, policy=policy)


def show_help(word: str) -> None:
    """Print our options and vLLM's: all of them (``all``), or those whose names have ``word``."""
    from ecoserve.cli.common import stderr_console
    from ecoserve.serving.adapter.vllm_flags import help_text

    app = typer.Typer(add_completion=False)
    app.command()(command)
    own = typer.main.get_command(app)
    wanted = [
        (", ".join(p.opts), (getattr(p, "help", None) or "").replace("\\[", "["))
        for p in own.params
        if p.opts[0].startswith("--") and (word == "all" or word in p.opts[0])
    ]
    if wanted:
        print("Options of ecoserve:\n")
        for names, text in wanted:
            print(f"  {names:<24}{text}" if len(names) < 23 else f"  {names}\n{'':<26}{text}")
        print()
    with stderr_console().status("loading vLLM"):
        flags = help_text(word)
    print(f"Options of vLLM:\n\n{flags}")
