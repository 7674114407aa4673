"""What the fidelity of ``fidelity.py`` hangs on: constants 30 % up and down, rules switched off.

    python benchmarks/studies/fidelity_sensitivity.py ../shared/data/vllm_logs/* --json FILE

For each log and each change: errors of the means of TPOT, E2EL and TTFT in percent, against the same measurements.
First the gap a request is calibrated on each log alone and every log is shown with every one of these constants, so
that no log has to be judged by a constant that it gave.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Final
from unittest.mock import patch

import common
from common import dumps
from fidelity import TARGETS, compare
from fidelity_logs import VllmLog, read_log
from fidelity_runs import Other, calibrate, model_of, simulate

from ecoserve.errors import EcoServeError
from ecoserve.serving.simulate.gpu import attention, model, tables
from ecoserve.serving.simulate.gpu.attention import BatchAttention
from ecoserve.serving.simulate.gpu.hardware import Link, find_gpu, find_link
from ecoserve.serving.simulate.gpu.model import HostTimes, gpu_model
from ecoserve.serving.simulate.gpu.shapes import load_shape

Change = tuple[str, Callable[[VllmLog], Other], Callable[[], AbstractContextManager[Any]]]


def _nothing(log: VllmLog) -> Other:
    return Other()


def _host(kinds: str, factor: float, log: VllmLog) -> Other:
    """The host's constants whose names begin with one of ``kinds``, times a factor."""
    default = HostTimes()
    scaled = {n: factor * v for n, v in default.model_dump().items() if n.partition("_")[0] in kinds.split()}
    return Other(host=default.model_copy(update=scaled))


def _link(latency: float, bandwidth: float, log: VllmLog) -> Other:
    """The stated link's latency and bandwidth times a factor."""
    if log.link is None or not _linked(log):
        return Other()
    return Other(link=(log.link[0] * latency, log.link[1] * bandwidth))


def _linked(log: VllmLog) -> bool:
    return log.settings.tp * log.settings.expert_ranks > 1


@contextmanager
def _other_tables() -> Iterator[None]:
    """Kernel times as measured, though their KV came from the cache; in a cache of files of their own."""

    def measured(kernels: Any, values: Any) -> tuple[float, Any]:
        return correct(kernels, values)[0], values

    correct = tables._from_memory
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.dict(os.environ, {"XDG_CACHE_HOME": folder}),
        patch.object(tables, "_from_memory", measured),
    ):
        yield


def _alone(self: BatchAttention, requests: int, context: int) -> float:
    return self._decode(requests, context / requests)


def _each_way(self: Link, pieces: list[float]) -> float:
    """A link whose directions do not share anything, each with the stated bandwidth."""
    return self.latency_s * (len(pieces) - 1) + max(pieces) * (len(pieces) - 1) / self.bandwidth


def _times(module: Any, name: str, factor: float) -> AbstractContextManager[Any]:
    """A module's constant times a factor."""
    return patch.object(module, name, factor * getattr(module, name))


def changes() -> list[Change]:
    """Name, what is taken instead, and what is patched meanwhile."""
    rows: list[Change] = [("as it is", _nothing, nullcontext)]
    rows.append(("gap between steps none", partial(_host, "gap", 0.0), nullcontext))
    for label, f in (("-30 %", 0.7), ("+30 %", 1.3)):
        rows += [
            (f"gap between steps {label}", partial(_host, "gap", f), nullcontext),
            (f"host's own times {label}", partial(_host, "schedule launch", f), nullcontext),
            (f"sampling's share of the bandwidth {label}", _nothing, partial(_times, model, "_SIMPLE_KERNELS", f)),
            (f"share of the cache for one head's KV {label}", _nothing, partial(_times, attention, "_CACHE_SHARE", f)),
            (f"link's latency {label}", partial(_link, f, 1.0), nullcontext),
            (f"link's bandwidth {label}", partial(_link, 1.0, f), nullcontext),
        ]
    rows += [
        ("rule off: both directions share the link", _nothing, partial(patch.object, Link, "gather_s", _each_way)),
        ("rule off: the longest decode's tail", _nothing, partial(patch.object, BatchAttention, "_tail_ms", _zero)),
        (
            "rule off: decodes beside prompts are not packed",
            _nothing,
            partial(patch.object, BatchAttention, "decode_beside_prompts_ms", _alone),
        ),
        ("rule off: KV comes from memory", _nothing, _other_tables),
    ]
    return rows


def _zero(self: BatchAttention, *work: float) -> float:
    return 0.0


def errors(log: VllmLog, other: Other) -> dict[str, float]:
    """Errors of the means in percent, and whether all are within the targets."""
    machine = model_of(log, other)
    result = compare(log, machine, *simulate(log, machine))
    found = {name: result[name]["mean"]["error_percent"] for name in TARGETS}
    return {**found, "within": all(result["within_targets"].values())}


#: Links of a machine of which there is no log: latency and bandwidth times these, or another kind.
_LINKS: Final[dict[str, tuple[float, float] | str]] = {
    "latency -30 %": (0.7, 1.0),
    "latency +30 %": (1.3, 1.0),
    "bandwidth -30 %": (1.0, 0.7),
    "bandwidth +30 %": (1.0, 1.3),
    "from card to card (pcie)": "pcie",
}


def without_a_log(log: VllmLog) -> dict[str, Any]:
    """TPOT and E2EL of Qwen3-32B at tensor parallel 2 with other links, in percent of those with the GPU's own."""
    there = replace(log, settings=replace(log.settings, tp=2, expert_ranks=1))
    shape = load_shape("qwen3-32b")

    def means(link: Link | str | None) -> tuple[float, float]:
        rows, _ = simulate(there, gpu_model(log.hardware, shape, 2, link=link))
        return fmean(r.tpot_s for r in rows if r.tpot_s), fmean(r.e2el_s or 0.0 for r in rows)

    own = find_link(find_gpu(log.hardware))
    assert own is not None
    tpot, e2el = means(None)
    moves = {}
    for name, change in _LINKS.items():
        scaled = change if isinstance(change, str) else Link(own.latency_s * change[0], own.bandwidth * change[1])
        moved = means(scaled)
        moves[name] = {"tpot": round(100 * (moved[0] / tpot - 1), 2), "e2el": round(100 * (moved[1] / e2el - 1), 2)}
    return {"model": shape.name, "tp": 2, "requests_of": log.name, "tpot_ms": round(1e3 * tpot, 2), "moves": moves}


def main() -> int:
    """Run from the command line."""
    parser = common.arguments_of(__doc__)
    parser.add_argument("logs", nargs="+", type=Path)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    try:
        logs = [read_log(folder) for folder in args.logs]
        crossed = []
        for source in logs:
            gap = calibrate(source, Other(), rounds=3)
            other = Other(host=HostTimes(gap_request_s=gap))
            crossed.append(
                {
                    "calibrated_on": source.name,
                    "gap_request_us": round(gap * 1e6, 3),
                    "errors_percent": {log.name: errors(log, other) for log in logs},
                }
            )
            print(dumps(crossed[-1]), flush=True)
        rows = []
        for name, other_of, patched in changes():
            with patched():
                found = {log.name: errors(log, other_of(log)) for log in logs if "link" not in name or _linked(log)}
            rows.append({"change": name, "errors_percent": found})
            print(dumps(rows[-1]), flush=True)
        moved = without_a_log(logs[-1])
        print(dumps(moved), flush=True)
    except EcoServeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if args.json:
        command = "python benchmarks/studies/fidelity_sensitivity.py LOGS --json FILE"
        report = {
            "command": command,
            "targets_percent": TARGETS,
            "calibrated": crossed,
            "changes": rows,
            "without_a_log": moved,
        }
        common.write(args.json, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
