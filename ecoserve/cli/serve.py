"""``ecoserve serve``: vLLM's server with predicted lengths and our scheduler."""

from __future__ import annotations

from typing import Annotated

import typer


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
) -> None:
    """Serve MODEL with vLLM, its requests scheduled by predicted response lengths.

    Any flag of `vllm serve` may follow and is passed on. MODEL comes first.
    """
    from ecoserve.errors import ConfigError
    from ecoserve.serving.adapter.front_settings import FrontSettings
    from ecoserve.serving.adapter.server import ServeOptions, serve

    if model.startswith("-"):
        raise ConfigError(f"the model comes before {model}", where="ecoserve serve", fix="ecoserve serve MODEL [flags]")
    # What is not given here may be in the environment already.
    given = {
        "predictor": predictor,
        "predict_timeout_ms": prediction_timeout_ms,
        "trust_client": trust_client_predictions or None,
        "replay": replay or None,
    }
    front = FrontSettings.from_environment().with_changes(given)
    serve(ServeOptions(model=model, policy=policy, front=front), context.args)
