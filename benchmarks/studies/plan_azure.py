"""GPUs for Azure's traces of 2023, arrivals as recorded: ``ecoserve plan`` under vLLM, vLLM at its best, and ecoserve.

    python benchmarks/studies/plan_azure.py DATA --folder FOLDER --json benchmarks/results/plan_azure.json
    python benchmarks/studies/plan_azure.py --tables        # the table of docs/results/results.md from that file

``DATA`` holds the traces. Of each the first 1,500 requests are taken, with their bursts: about ten minutes of code,
five of conversations. Each policy is asked with two routers: the fewest open requests, and the least expected work.
What is finished in ``FOLDER`` is not run again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

import common

from ecoserve.cli.main import main as ecoserve

DOCUMENT: Final = common.ROOT / "docs" / "results" / "results.md"
RESULT: Final = "plan_azure.json"
REQUESTS: Final = 1500
#: Trace, and the model and tensor parallel sizes to choose from.
LOADS: Final = {
    "code": ("azure_2023_code.csv", "qwen3-32b", "1,2"),
    "conversations": ("azure_2023_conv.csv", "llama-3.1-70b", "2,4"),
}
SHARED: Final = [
    *("--requests", str(REQUESTS), "--gpu", "rtx_pro_6000_server", "--slo-scale", "5", "--share", "0.99,0.9"),
    *("--router", "least-requests,least-work", "--no-prefix-caching"),
]
#: Keys of an answer that the result file keeps.
KEPT: Final = (
    *("policy", "lengths", "router", "share", "state", "at_full_batches", "low", "high", "worst_part", "slower"),
)


def plan(load: str, data: Path, folder: Path) -> dict[str, Any]:
    """The answers of one load, condensed."""
    trace, model, tps = LOADS[load]
    words = ["plan", "--trace", str(data / trace), "--model", model, "--tp", tps, *SHARED]
    code = ecoserve([*words, "-o", str(folder / load), "--resume", "--jobs", "1"])
    if code not in (0, 3):
        sys.exit(code)
    found = json.loads((folder / load / "plan.json").read_text("utf-8"))
    answers = []
    for row in found["answers"]:
        best = max(row["fewer"], key=lambda t: t["attainment"], default=None)
        answers.append(
            {k: row[k] for k in KEPT} | {"answer": row["answer"], "fewer": best, "trials": len(row["trials"])}
        )
    text = " ".join(["ecoserve", *(w.replace(str(data), "DATA") for w in words)])
    return {"command": text, "unsure": found["unsure"], "answers": answers}


def table() -> str:
    """The answers of both loads."""
    lines = []
    for load, found in common.read(RESULT).get("loads", {}).items():
        for row in found["answers"]:
            answer, fewer = row["answer"], row["fewer"]
            shape = "more than 64" if answer is None else f"{answer['gpus']} ({answer['replicas']} × tp {answer['tp']})"
            tokens = (answer or {}).get("tuning", {}).get("max_num_batched_tokens")
            policy = row["policy"] + (f", {tokens} tokens a forward" if tokens else "")
            lines.append(
                [
                    f"{load}, {row['share']:.0%}",
                    policy,
                    row["router"],
                    shape,
                    "" if answer is None else f"{answer['attainment']:.1%}",
                    "" if fewer is None else f"{fewer['attainment']:.1%} ({fewer['gpus']})",
                    "" if row["slower"] is None else f"{row['slower']:.1%}",
                    str(row["at_full_batches"]),
                ]
            )
    head = ["load, share", "policy", "router", "GPUs", "in SLO", "with fewer", "steps 5 % longer", "full batches"]
    return common.markdown(head, lines)


def main() -> int:
    """Run from the command line."""
    parser = common.arguments_of(__doc__)
    parser.add_argument("data", nargs="?", type=Path, help="folder with the traces")
    parser.add_argument("--folder", type=Path, default=Path("plan-azure"), help="where results are kept")
    parser.add_argument("--loads", default=",".join(LOADS), help="which of the loads")
    parser.add_argument("--json", type=Path, help="write the answers to this file")
    parser.add_argument("--tables", action="store_true", help="only renew the table of docs/results/results.md")
    args = parser.parse_args()
    if args.tables:
        common.renew(DOCUMENT, "plan_azure", {"plan": table})
        return 0
    loads = {load: plan(load, args.data, args.folder) for load in args.loads.split(",")}
    words = ("DATA", "--folder", "FOLDER", "--loads", args.loads, "--json", "FILE")
    result = {"command": common.command("plan_azure", *words), "requests": REQUESTS, "loads": loads}
    if args.json:
        common.write(args.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
