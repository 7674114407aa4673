"""What ``ecoserve try`` measures beside its runs: the modelled GPU against the real one, and the predictor's time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final

from ecoserve.data import Trace
from ecoserve.predictor import load_predictor, train_predictor
from ecoserve.serving.core.policies import POLICIES
from ecoserve.serving.engine_run import EngineRunSettings
from ecoserve.serving.simulate.cost import StepWork
from ecoserve.serving.simulate.run import simulate
from ecoserve.serving.simulate.settings import SimulateSettings, machine_of
from ecoserve.serving.trial_engine import step_times
from ecoserve.sweep.identity import PlannedRun
from ecoserve.sweep.summary import ModelledFigure, PredictorTime, RunRow, StepTime

_BATCHES: Final = (1, 8, 32, 128, 256)
_CONTEXTS: Final = (256, 1024, 4096)
#: Metrics that the model of the GPU is compared in.
_MODELLED: Final = ("tpot_mean_ms", "ttft_mean_ms", "e2el_mean_ms", "output_tokens_per_s")
#: Prompts that a predictor is timed on, and rows that one is trained on.
_PROMPTS: Final = 256
_ROWS: Final = 1000


def modelled_machine(
    common: EngineRunSettings, scheduler: Mapping[str, Any], machine: Mapping[str, Any]
) -> SimulateSettings:
    """The settings of a trial's runs on a modelled GPU. ``machine``: the fields that say which, and its model.

    Raises ConfigError where that GPU or model is not modelled.
    """
    known = {k: v for k, v in common.model_dump().items() if k in SimulateSettings.model_fields}
    settings = SimulateSettings.model_validate({**known, "policy": "vllm", "scheduler": dict(scheduler), **machine})
    machine_of(settings)
    return settings


def modelled_steps(engine: Any, settings: SimulateSettings) -> Iterator[StepTime]:
    """Steps of decodes alone, timed on an idle engine, beside the model's."""
    cost = machine_of(settings).cost
    for batch, context, seconds in step_times(engine, _BATCHES, _CONTEXTS):
        work = StepWork(0, batch, batch * context, [], batch * context, context)
        gpu, host = cost.seconds(work), cost.host_s(work)
        modelled = gpu + host if settings.depth == 1 else max(gpu, host)
        times = {"measured_ms": 1e3 * seconds, "modelled_ms": 1e3 * modelled}
        yield StepTime(batch=batch, context_tokens=context, **times)


def modelled_figures(run: RunRow, planned: PlannedRun, settings: SimulateSettings) -> Iterator[ModelledFigure]:
    """A finished run simulated on the modelled GPU: the same load in virtual time."""
    same = {k: planned.settings[k] for k in ("policy", "lengths", "rate_rps", "requests", "seed")}
    ours = settings.scheduler if run.policy in POLICIES else {}
    figures = simulate(settings.model_copy(update={**same, "scheduler": ours})).summary()
    for metric in _MODELLED:
        measured, modelled = getattr(run, metric), figures[metric]
        if measured and modelled:
            yield ModelledFigure(policy=run.policy, metric=metric, measured=measured, modelled=modelled)


def predictor_times(checkpoint: str, prompts: Sequence[Any], devices: Sequence[str]) -> Iterator[PredictorTime]:
    """How long the predictor of a checkpoint takes on each of ``devices`` that it can be moved to."""
    predictor: Any = load_predictor(checkpoint)
    prompts = list(prompts)[:_PROMPTS]
    for device in devices if hasattr(predictor, "to") else devices[:1]:
        if hasattr(predictor, "to"):
            predictor.to(device)
        predictor.predict(prompts[:8])
        alone = [_seconds(predictor.predict, [prompt]) for prompt in prompts[:16]]
        rate = len(prompts) / _seconds(predictor.predict, prompts)
        name = Path(checkpoint).name
        yield PredictorTime(name=name, device=device, one_prompt_ms=1e3 * median(alone), prompts_per_s=rate)


def training_time(trace: Trace) -> PredictorTime:
    """Fine-tune the default encoder for one epoch on a GPU, where training goes if there is one."""
    from ecoserve.predictor.encoder.settings import EncoderSettings

    with TemporaryDirectory() as folder:
        asked: dict[str, Any] = {"backend": "encoder", "settings": EncoderSettings(epochs=1), "max_rows": _ROWS}
        seconds = _seconds(lambda out: train_predictor(trace, output_dir=out, **asked), folder)
    return PredictorTime(name="training of the encoder, one epoch", device="cuda", prompts_per_s=_ROWS / seconds)


def _seconds(call: Callable[[Any], Any], argument: Any) -> float:
    begun = time.perf_counter()
    call(argument)
    return time.perf_counter() - begun
