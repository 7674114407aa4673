"""``ecoserve serve``: vLLM's server with predicted lengths and our scheduler."""

from __future__ import annotations

from typing import Annotated

import typer

_SLO = "Deadlines (clients: headers x-slo-ttft-ms, x-slo-tpot-ms)"


def command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model to serve: a folder, or a hub id.")],
    predictor: Annotated[
        str | None,
        typer.Option("--predictor", metavar="CKPT", help="Length predictor; without one, finished lengths serve."),
    ] = None,
    policy: Annotated[
        str, typer.Option("--policy", help="Scheduling policy; vllm for vLLM's own scheduler.")
    ] = "ecoserve",
    prediction_timeout_ms: Annotated[
        float | None,
        typer.Option("--prediction-timeout-ms", help="Longest wait of a request for its prediction [250]."),
    ] = None,
    trust_client_predictions: Annotated[
        bool, typer.Option("--trust-client-predictions", help="Let clients send predictions of their own.")
    ] = False,
    replay: Annotated[
        bool, typer.Option("--replay", help="Let clients force the lengths of responses, to replay a trace.")
    ] = False,
    client_slos: Annotated[
        str | None,
        typer.Option(
            "--client-slos",
            metavar="clamp|off",
            help="Clients' SLOs: taken, but raised to the least ones below; off: not looked at (default: clamp).",
            rich_help_panel=_SLO,
        ),
    ] = None,
    slo_min_ttft_ms: Annotated[
        float | None,
        typer.Option(
            "--slo-min-ttft-ms", metavar="MS", help="Least TTFT that clients can ask for [50].", rich_help_panel=_SLO
        ),
    ] = None,
    slo_min_tpot_ms: Annotated[
        float | None,
        typer.Option(
            "--slo-min-tpot-ms", metavar="MS", help="Least TPOT that clients can ask for [5].", rich_help_panel=_SLO
        ),
    ] = None,
    slo_scale: Annotated[
        float | None,
        typer.Option(
            "--slo-scale",
            metavar="X",
            help="SLO of requests that state none: X times the unloaded times [2].",
            rich_help_panel=_SLO,
        ),
    ] = None,
    unloaded_ttft_ms: Annotated[
        float | None,
        typer.Option(
            "--unloaded-ttft-ms",
            metavar="MS",
            help="What an idle engine needs for a usual prompt; without it, no TTFT is asked for.",
            rich_help_panel=_SLO,
        ),
    ] = None,
    unloaded_tpot_ms: Annotated[
        float | None,
        typer.Option(
            "--unloaded-tpot-ms",
            metavar="MS",
            help="What an idle engine needs for a further token; without it, no TPOT is asked for.",
            rich_help_panel=_SLO,
        ),
    ] = None,
) -> None:
    """Serve MODEL with vLLM, its requests scheduled by predicted response lengths.

    Any flag of `vllm serve` may follow and is passed on. MODEL comes first.
    """
    from ecoserve.errors import ConfigError
    from ecoserve.serving.adapter.middleware_settings import MiddlewareSettings
    from ecoserve.serving.adapter.server import ServeOptions, serve

    if model.startswith("-"):
        raise ConfigError(f"the model comes before {model}", where="ecoserve serve", fix="ecoserve serve MODEL [flags]")
    # What is not given here may be in the environment already.
    given = {
        "predictor": predictor,
        "predict_timeout_ms": prediction_timeout_ms,
        "trust_client": trust_client_predictions or None,
        "replay": replay or None,
        "client_slos": client_slos,
        "slo_min_ttft_ms": slo_min_ttft_ms,
        "slo_min_tpot_ms": slo_min_tpot_ms,
        "slo_scale": slo_scale,
        "unloaded_ttft_ms": unloaded_ttft_ms,
        "unloaded_tpot_ms": unloaded_tpot_ms,
    }
    front = MiddlewareSettings.from_environment().with_changes(given)
    serve(ServeOptions(model=model, policy=policy, front=front), context.args)
