"""The tables of docs/results/fidelity.md, from the result files.

    python benchmarks/studies/fidelity_tables.py        # writes them between the marks in docs/results/fidelity.md

A test holds the document against this script.
"""

from __future__ import annotations

from typing import Any, Final

import common

DOCUMENT: Final = common.ROOT / "docs" / "results" / "fidelity.md"
FIGURES: Final = ("tpot", "e2el", "ttft")
#: The steps of gpu_bounds.json that the page shows.
STEPS: Final = ("1 decode at 1,000", "64 decodes at 4,000", "prompt of 2,048", "1,900 new beside 128 decodes at 1,000")


def _short(log: str) -> str:
    return log.removeprefix("rtxpro6000_").removesuffix("-instruct-2507")


def _signed(percent: float) -> str:
    return f"{percent:+.2f} %".replace("-", "−")


def logs() -> str:
    """Measured and modelled figures of each log."""
    parts = []
    for log in common.read("fidelity.json")["logs"]:
        rows = []
        for figure in FIGURES:
            cells = [f"{v['measured_ms']:,.1f} → {v['modelled_ms']:,.1f} ms" for v in log[figure].values()]
            errors = [_signed(v["error_percent"]) for v in log[figure].values()]
            rows.append([figure.upper(), *(f"{c}<br>{e}" for c, e in zip(cells, errors, strict=True))])
        series = "; ".join(
            f"requests {name}, second by second: {log[name]['mean_measured']} measured, "
            f"{log[name]['mean_modelled']} modelled on average, correlation {log[name]['correlation']}, "
            f"mean distance {log[name]['mean_abs_difference']}"
            for name in ("running", "waiting")
        )
        ranks = f", {log['expert_ranks']} replicas that share experts" if log["expert_ranks"] > 1 else ""
        title = (
            f"**{log['log']}** (vLLM {log['vllm']}{ranks}, {log['requests']} requests; the last ended after "
            f"{log['duration_s']['measured']:.1f} s measured, {log['duration_s']['modelled']:.1f} s modelled)"
        )
        table = common.markdown(["measured → modelled", "mean", "p50", "p90", "p99"], rows)
        parts.append(f"{title}\n\n{table}\n\n{series[0].upper()}{series[1:]}.")
    return "\n\n".join(parts)


def _errors(row: dict[str, Any], names: list[str]) -> list[str]:
    cells = []
    for name in names:
        found = row["errors_percent"].get(name)
        text = "·" if found is None else " / ".join(_signed(found[f]).removesuffix(" %") for f in FIGURES)
        cells.append(text if found is None or found["within"] else f"**{text}**")
    return cells


def calibrated() -> str:
    """Each log's constant, shown on each log."""
    rows = common.read("fidelity_sensitivity.json")["calibrated"]
    names = [r["calibrated_on"] for r in rows]
    head = ["calibrated on", "gap a request", *(f"shown on {_short(n)}" for n in names)]
    lines = [[_short(r["calibrated_on"]), f"{r['gap_request_us']:.2f} µs", *_errors(r, names)] for r in rows]
    return common.markdown(head, lines)


def changes() -> str:
    """What happens to the errors when a constant or a rule is another."""
    found = common.read("fidelity_sensitivity.json")
    names = [r["calibrated_on"] for r in found["calibrated"]]
    lines = [[r["change"].replace("-", "−"), *_errors(r, names)] for r in found["changes"]]
    return common.markdown(["change", *map(_short, names)], lines)


def links() -> str:
    """How far the figures of a machine without a log move with its link."""
    found = common.read("fidelity_sensitivity.json")["without_a_log"]
    title = (
        f"{found['model']} at tensor parallel {found['tp']} with the requests of {_short(found['requests_of'])}, "
        f"against its TPOT of {found['tpot_ms']:.1f} ms with the GPU's own link:"
    )
    rows = [[n.replace("-", "−"), _signed(m["tpot"]), _signed(m["e2el"])] for n, m in found["moves"].items()]
    return f"{title}\n\n" + common.markdown(["link", "TPOT", "E2EL"], rows)


def bounds() -> str:
    """KV and four steps of each machine, beside their bounds."""
    found = common.read("gpu_bounds.json")
    summary, rows = found["summary"], []
    for machine in found["machines"]:
        kv = machine["kv"]
        steps = [machine["steps"].get(label) for label in STEPS]
        rows.append(
            [
                machine["machine"],
                f"{kv['gib']:,.1f} of {kv['left_gib']:,.1f}",
                *(
                    "does not fit" if s is None else f"{s['modelled_ms']:,.1f} (× {s['times_bound']:.2f})"
                    for s in steps
                ),
            ]
        )
    nearest = summary["nearest"]
    line = (
        f"{summary['machines']} machines, {summary['steps']} steps: {summary['beat_physics']} beat physics. The "
        f"nearest is {nearest['step']} on {nearest['machine']}, {nearest['times_bound']:.2f} times its bound; the "
        f"median is {summary['median_times_bound']:.2f} times."
    )
    return f"{line}\n\n" + common.markdown(["machine", "KV, GiB", *(f"{s}, ms" for s in STEPS)], rows)


TABLES: Final = {"logs": logs, "calibrated": calibrated, "changes": changes, "bounds": bounds, "links": links}

if __name__ == "__main__":
    common.renew(DOCUMENT, "fidelity_tables", TABLES)
