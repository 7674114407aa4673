"""The model card of a checkpoint; every figure on it comes from the evaluation that training made."""

from __future__ import annotations

from ecoserve.predictor.calibration import Calibration
from ecoserve.predictor.config import PredictorConfig

_ROWS = (
    ("mae_tokens", "mean absolute error (tokens)", "{:.1f}"),
    ("within_50", "within 50 tokens", "{:.1%}"),
    ("within_100", "within 100 tokens", "{:.1%}"),
    ("kendall_tau", "Kendall's tau-b", "{:.3f}"),
    ("bin_accuracy", "likeliest bin holds the length", "{:.1%}"),
    ("pinball_loss", "pinball loss (tokens)", "{:.2f}"),
    ("crps", "CRPS (tokens)", "{:.2f}"),
    ("ece", "expected calibration error", "{:.3f}"),
    ("coverage_50", "covered by the 0.50 quantile", "{:.1%}"),
    ("coverage_80", "covered by the 0.80 quantile", "{:.1%}"),
    ("coverage_90", "covered by the 0.90 quantile", "{:.1%}"),
    ("coverage_95", "covered by the 0.95 quantile", "{:.1%}"),
    ("latency_p50_ms", "latency of one request, p50 (ms)", "{:.1f}"),
    ("latency_p99_ms", "latency of one request, p99 (ms)", "{:.1f}"),
)

_TEMPLATE = """\
---
library_name: ecoserve
tags:
- response-length-prediction
- llm-serving
---

# Response length predictor{% if c.served_model %} for {{ c.served_model }}{% endif %}


Predicts how many tokens {{ c.served_model or "the served model" }} will generate for a request, as a distribution over
{{ c.prior | length }} bins from 1 to {{ c.edges[-1] }} tokens (the last one closed by {{ closed }}).

    from ecoserve.predictor import load_predictor

    predictor = load_predictor("THIS_FOLDER")
    [lengths] = predictor.predict(["Give three tips for staying healthy."])
    lengths.quantile(0.5), lengths.quantile(0.9), lengths.mean()
{% if k.bounds %}
    predictor.upper_bounds(["Give three tips for staying healthy."], 0.9)  # with a finite-sample guarantee
{% endif %}

With vLLM: `ecoserve serve MODEL --predictor THIS_FOLDER`.

## How well it predicts

{% if table %}
{{ table }}

The point prediction is the distribution's median. Held-out rows chose the training's best epoch or round and made the
calibration; `dev` rows, where there are any, were used for nothing else. Latencies are of the machine that trained it.
{% else %}
It was not evaluated.
{% endif %}

## How it was made
- backend `{{ c.backend }}`, seed {{ c.seed }}, {{ "%.0f" | format(c.training_seconds) }} s of training
- trace `{{ c.trace_name }}` ({{ c.trace_format }}), lengths from {{ c.length_source }}, SHA-256 of its records
  `{{ c.trace_sha256 }}`
- {{ c.rows_trained }} rows learned from, {{ c.rows_held_out }} held out
{% if c.parameters %}
- of a request it reads, beside the text, {{ c.parameters | join(", ") }}
{% endif %}
- temperature {{ "%.3f" | format(k.temperature) }} from {{ k.rows }} held-out rows
- {% for name, value in c.hyperparameters | dictsort %}{{ name }} {{ value }}{{ ", " if not loop.last }}{% endfor %}

- {% for name, value in c.versions | dictsort %}{{ name }} {{ value }}{{ ", " if not loop.last }}{% endfor %}


## Limits
It has learned one model's response lengths for requests like those of its trace. For another model, other sampling
settings or another kind of request, measure it first: `ecoserve evaluate-predictor`.
"""


def model_card(config: PredictorConfig, calibration: Calibration) -> str:
    """The card in Markdown, with the metadata block that model hubs read."""
    from jinja2 import Environment, StrictUndefined

    names = {"support": "the largest length seen, or set, in training", "max_tokens": "max_tokens"}
    heads = [f"{name.replace('_', ' ')}, {int(m['rows']):,} rows" for name, m in config.metrics.items()]
    lines = [["", *heads], ["---", *["---:"] * len(heads)]]
    # A checkpoint of an earlier version may lack a key.
    lines += [
        [label, *(shape.format(m[key]) if key in m else "-" for m in config.metrics.values())]
        for key, label, shape in _ROWS
        if any(key in m for m in config.metrics.values())
    ]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines) if heads else ""
    template = Environment(undefined=StrictUndefined, trim_blocks=True, autoescape=False).from_string(_TEMPLATE)
    return template.render(c=config, k=calibration, table=table, closed=names.get(config.closed_by, config.closed_by))
