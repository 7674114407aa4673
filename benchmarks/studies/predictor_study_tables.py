"""The tables of docs/results/predictor-study.md, from the result files.

    python benchmarks/studies/predictor_study_tables.py    # writes them into docs/results/predictor-study.md

A test holds the document against this script.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import common
from common import markdown

DOCUMENT: Final = common.ROOT / "docs" / "results" / "predictor-study.md"

#: Columns of a table of predictors: heading, key, and how its figures are written.
COLUMNS: Final = (
    ("MAE (tokens)", "mae_tokens", "{:.1f}"),
    ("within 50", "within_50", "{:.1%}"),
    ("within 100", "within_100", "{:.1%}"),
    ("tau", "kendall_tau", "{:.3f}"),
    ("bin", "bin_accuracy", "{:.1%}"),
    ("pinball", "pinball_loss", "{:.2f}"),
    ("CRPS", "crps", "{:.1f}"),
    ("ECE", "ece", "{:.3f}"),
    ("q0.5", "coverage_50", "{:.1%}"),
    ("q0.8", "coverage_80", "{:.1%}"),
    ("q0.9", "coverage_90", "{:.1%}"),
    ("q0.95", "coverage_95", "{:.1%}"),
)
SHORT: Final = tuple(c for c in COLUMNS if c[1] in ("mae_tokens", "kendall_tau", "crps", "coverage_50", "coverage_90"))

#: Parts of predictor_other_data.json, and what they are called; the trace's own part is LightGBM's.
BACKENDS: Final = {
    None: "LightGBM",
    "stacked": "default",
    "stacked_after_alpaca": "default, started from Alpaca's",
}

_TEMPERATURE: Final = (
    *(("temperature", "{:g}"), ("mean_tokens", "{:.0f}"), ("p50_tokens", "{:.0f}"), ("p90_tokens", "{:.0f}")),
    *(("share_cut_off", "{:.2%}"), ("mae_to_own_tokens", "{:.1f}"), ("tau_to_own", "{:.3f}")),
)


def figure(row: Mapping[str, Any], key: str, shape: str) -> str:
    """A key's mean, with its standard deviation over seeds where it is worth a digit."""
    if row.get(key) is None:
        return ""
    text, sd = shape.format(row[key]), row.get("sd", {}).get(key)
    if not sd:
        return text
    spread = shape.format(sd).rstrip("%")
    return f"{text} ± {spread}" if float(spread) > 0 else text


def of_predictors(rows: Mapping[str, Mapping[str, Any]], columns: Sequence[tuple[str, str, str]] = COLUMNS) -> str:
    """One line per predictor."""
    lines = []
    for name, row in rows.items():
        seeds = len(row["seeds"]) if "seeds" in row else None
        label = f"{name.replace('_', ' ')}" + (f" ({seeds} seeds)" if seeds and seeds > 1 else "")
        lines.append([label, *(figure(row, key, shape) for _, key, shape in columns)])
    return markdown(["", *(heading for heading, _, _ in columns)], lines)


def table(trace: str) -> str:
    """The baselines and predictors on one trace."""
    rows = common.read("predictor_table.json")[trace]["table"]
    n = sorted({round(row["rows"]) for row in rows.values()})
    return of_predictors(rows) + f"\n\n{' or '.join(f'{x:,}' for x in n)} rows.\n\n" + _commands(rows.values())


def sharegpt() -> str:
    section = common.read("predictor_other_data.json")["sharegpt"]
    rows = section["found"]
    lines = [
        [k.replace("_", " "), f"{v['rows']:.0f}", *(figure(v, key, s) for _, key, s in SHORT)] for k, v in rows.items()
    ]
    return markdown(["LightGBM", "rows", *(c[0] for c in SHORT)], lines) + "\n\n" + _commands([section])


def alpaca_eval() -> str:
    section = common.read("predictor_other_data.json")["alpaca_eval"]
    rows = section["found"]
    lines = [
        [k.replace("_", " "), *(figure(v, key, s) for _, key, s in SHORT), f"{v['kendall_tau_within_models']:.3f}"]
        for k, v in rows.items()
    ]
    whole = markdown(["all nine models", *(c[0] for c in SHORT), "tau within a model"], lines)
    best = rows["model_named"]["models"]
    each = [[name, *(figure(v, key, s) for _, key, s in SHORT)] for name, v in best.items()]
    single = markdown(["knows the model's name", *(c[0] for c in SHORT)], each)
    return f"{whole}\n\n{single}\n\n{_commands([section])}"


def of_backends(trace: str) -> str:
    """The default predictor beside LightGBM, on the same rows of each seed."""
    section = common.read("predictor_other_data.json")[trace]
    parts = {
        said: section if key is None else section[key] for key, said in BACKENDS.items() if key in {None, *section}
    }
    trees, ways = section["found"], [w for w in section["found"] if w in section["stacked"]["found"]]
    lines = []
    for way in ways:
        for said, part in parts.items():
            if (row := part["found"].get(way)) is None:
                continue
            figures = [figure(row, key, s) for _, key, s in SHORT]
            less = ["", ""]
            if part is not section:
                on = (part["found"], trees), (part["held_out"], section["held_out"])
                less = [_less(mine[way], its[way]) if way in mine else "" for mine, its in on]
            seeds = len(row["by_seed"]["mae_tokens"])
            lines.append([f"{way.replace('_', ' ')}: {said}", str(seeds), *figures, *less])
    headings = ["", "seeds", *(c[0] for c in SHORT), "MAE less LightGBM's, by seed", "the same on held-out rows"]
    return markdown(headings, lines) + "\n\n" + _commands([part for part in parts.values() if part is not section])


def duplicates() -> str:
    found = common.read("predictor_study.json")["duplicates"]
    words = {"all_of_train": "all of train", "without_duplicates": "without the duplicates"}
    words["as_many_at_random"] = "without as many others"
    rows = [
        [said, *(figure(found["found"][f"{name}_{part}"], "mae_tokens", "{:.1f}") for part in ("with", "other"))]
        for name, said in words.items()
    ]
    constant = found["constant_median_mae_tokens"]
    rows.append(["constant median", f"{constant['with']:.1f}", f"{constant['other']:.1f}"])
    rows.append(["mean length of the duplicates' answers", f"{found['duplicates_mean_mae_tokens']:.1f}", ""])
    n, has = found["dev_rows"], found["dev_rows_with_a_duplicate"]
    headings = ["learned from", f"MAE, {has:,} dev rows with a near-duplicate in train", f"MAE, the other {n - has:,}"]
    return markdown(headings, rows) + "\n\n" + _commands([found])


def noise() -> str:
    found = common.read("predictor_study.json")["noise"]
    names = [k for k in found if k != "command"]
    temperatures = [[shape.format(t[key]) for key, shape in _TEMPERATURE] for t in found[names[0]]["temperatures"]]
    headings = ["temperature", "mean", "median", "p90", "cut off", "mean distance to the answer at 0.7", "tau with it"]
    first = markdown(headings, temperatures)
    keys = {
        "rows": "rows",
        "predictor_mae_tokens": "predictor's MAE",
        "others_mean_mae_tokens": "MAE of the mean of the three other answers",
        "law_centre_mae_tokens": "the same, if that mean were exact (errors normal)",
        "noise_share_of_absolute_error": "share of the MAE that is noise, from the latter and the former",
        "predictor_rms_tokens": "predictor's root mean square error",
        "noise_rms_tokens": "noise, root mean square",
        "noise_share_of_squared_error": "share of the squared error that is noise",
        "same_prompt_sd_tokens": "standard deviation of the four answers to a prompt",
    }
    rows = [[said, *(_said(found[n][key]) for n in names)] for key, said in keys.items()]
    cut = {
        "share": "cut off at the cap (share of rows)",
        "mae_tokens": "MAE of those",
        "mae_of_the_others_tokens": "MAE of all others",
        "predicted_cut_off": "predicted probability of the cap for those",
    }
    rows += [[said, *(_said(found[n]["cut_off"][key]) for n in names)] for key, said in cut.items()]
    return f"{first}\n\n{markdown(['tokens', *names], rows)}\n\n{_commands([found])}"


def curve() -> str:
    found = common.read("predictor_study.json")["curve"]
    kinds = [k for k in found if k != "command"]
    rows = [
        [
            f"{int(size):,}",
            *(
                figure(found[k][size], key, s)
                for k in kinds
                for key, s in (("mae_tokens", "{:.1f}"), ("kendall_tau", "{:.3f}"))
            ),
        ]
        for size in found[kinds[0]]
    ]
    headings = ["rows of train", *(f"{k.replace('_', ' ')}: {what}" for k in kinds for what in ("MAE", "tau"))]
    return markdown(headings, rows) + "\n\n" + _commands([found])


def errors() -> str:
    found = common.read("predictor_study.json")["errors"]
    name = next(k for k in found if k != "command")
    rest = [k for k in found if k not in ("command", name)]
    keys = ("mean_tokens", "mae_tokens", "bias_tokens", "others_mean_mae_tokens", "avoidable_tokens")
    headings = ["prompts", "rows", "mean length", f"MAE ({name})", "bias", "noise (MAE of other answers)", "avoidable"]
    headings += ["share of all avoidable", "tau", *(f"avoidable ({other})" for other in rest)]
    rows = []
    for kind, row in {"all": found[name]["all"], **found[name]["kinds"]}.items():
        cells = [kind.replace("_", " "), f"{row['rows']:,}", *(f"{row[k]:.1f}" for k in keys)]
        share = f"{row['share_of_avoidable']:.0%}" if "share_of_avoidable" in row else ""
        theirs = [found[o]["all"] if kind == "all" else found[o]["kinds"].get(kind) for o in rest]
        rows.append(
            [
                *cells,
                share,
                f"{row['kendall_tau']:.2f}",
                *("" if t is None else f"{t['avoidable_tokens']:.1f}" for t in theirs),
            ]
        )
    bands = []
    for of in ("true_length", "predicted_length"):
        for band, row in found[name][of].items():
            cells = [f"{of.replace('_', ' ')} {band}", f"{row['rows']:,}", *(f"{row[k]:.1f}" for k in keys)]
            bands.append([*cells, f"{row['kendall_tau']:.2f}"])
    second = markdown(["length in tokens", "rows", "mean length", "MAE", "bias", "noise", "avoidable", "tau"], bands)
    return f"{markdown(headings, rows)}\n\n{second}\n\n{_commands([found])}"


SECTIONS: Final = {
    "alpaca": lambda: table("alpaca"),
    "sharegpt": lambda: table("sharegpt"),
    "sharegpt context": sharegpt,
    "sharegpt backends": lambda: of_backends("sharegpt"),
    "alpaca_eval": lambda: table("alpaca_eval"),
    "alpaca_eval models": alpaca_eval,
    "alpaca_eval backends": lambda: of_backends("alpaca_eval"),
    "duplicates": duplicates,
    "noise": noise,
    "curve": curve,
    "errors": errors,
}


def _less(row: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """By how much the error is lower, for each seed that both have; seeds have rows of their own."""
    both = zip(row["by_seed"]["mae_tokens"], other["by_seed"]["mae_tokens"], strict=False)
    return ", ".join(f"{mine - its:+.1f}" for mine, its in both)


def _said(value: Any) -> str:
    if isinstance(value, list):
        return " to ".join(_said(v) for v in value)
    return "" if value is None else f"{value:g}"


def _commands(sections: Iterable[Mapping[str, Any]]) -> str:
    return "\n".join(f"`{c}`  " for c in dict.fromkeys(s["command"] for s in sections)).rstrip()


if __name__ == "__main__":
    common.renew(DOCUMENT, "predictor_study_tables", SECTIONS)
