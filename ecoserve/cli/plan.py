"""``ecoserve plan``: how many GPUs does this load need for its SLO, under which policy?"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, Field

from ecoserve.cli.common import (
    JsonOption,
    OutputOption,
    QuietOption,
    SeedOption,
    emit_json,
    parsed_rate,
    stderr_console,
)
from ecoserve.cli.options import taken, takes
from ecoserve.serving.simulate.settings import LINEAR, SimulateSettings

if TYPE_CHECKING:
    from rich.console import Console

    from ecoserve.pages import Table

#: The command's defaults where they are not those of a run; None: what the trace needs.
_DEFAULTS: Final = {"depth": 2, "prefix_caching": True, "max_model_len": None, "requests": None, "lengths": "tau:0.6"}


class PlanOptions(BaseModel):
    """What the command takes besides the settings of a run."""

    rate: str = Field("recorded", description="requests per second, Poisson; or recorded")
    split: str | None = Field(None, description="train, dev or all; by default dev, with recorded arrivals all")
    seeds: int = Field(1, ge=1, description="seeds over which the share is averaged at the answer, counting up")
    gpu: str = Field(
        LINEAR, description="GPUs to choose from, as h100_sxm,l40s", json_schema_extra={"metavar": "A,B,..."}
    )
    tp: str = Field(
        "1,2,4,8", description="tensor parallel sizes to choose from", json_schema_extra={"metavar": "N,..."}
    )
    policy: str = Field(
        "vllm,vllm-best,ecoserve",
        description="policies; vllm-best: priority by the same predictions, the best of several forward sizes",
        json_schema_extra={"metavar": "A,B,..."},
    )
    router: str = Field("least-work", description="routers", json_schema_extra={"metavar": "A,B,..."})
    share: str = Field(
        "0.99", description="share of the requests that is to meet the SLO", json_schema_extra={"metavar": "X,..."}
    )
    max_gpus: int = Field(64, ge=1, description="GPUs at most")
    slower: float = Field(0.05, ge=0, le=1, description="share by which longer steps are tried at the answer")
    jobs: int | None = Field(
        None, ge=0, description="runs at once, one process each; by default one a core; 0: in this process"
    )
    resume: bool = Field(False, description="continue in that folder; finished runs are not run again")


@takes(
    SimulateSettings,
    "trace requests max_tokens length_field tokenizer format time_unit strict",
    panel="Load",
    defaults=_DEFAULTS,
)
@takes(PlanOptions, "rate split seeds", panel="Load")
@takes(SimulateSettings, "slo_ttft_ms slo_tpot_ms slo_scale", panel="SLO")
@takes(PlanOptions, "share", panel="SLO")
@takes(PlanOptions, "gpu tp policy router max_gpus", panel="What to choose from")
@takes(SimulateSettings, "model link lengths gpu_memory_utilization blocks", panel="Machine", defaults=_DEFAULTS)
@takes(
    SimulateSettings,
    "max_model_len max_num_seqs max_num_batched_tokens prefix_caching depth",
    panel="Engine",
    defaults=_DEFAULTS,
)
@takes(PlanOptions, "slower jobs resume", panel="Results")
def command(
    *,
    output: OutputOption = Path("plan-results"),
    seed: SeedOption = 0,
    json: JsonOption = None,
    quiet: QuietOption = False,
    **given: Any,
) -> None:
    """Find the fewest GPUs with which a load holds its SLO, by policy, in simulations.

    Exit code 3 if no allowed number does.
    """
    from ecoserve.errors import ConfigError, RunError, ThresholdError
    from ecoserve.options import checked
    from ecoserve.serving.workload import chosen_split
    from ecoserve.sweep.execute import execute
    from ecoserve.sweep.identity import hardware
    from ecoserve.sweep.plan import located
    from ecoserve.sweep.results import ResultFolder, write_json
    from ecoserve.sweep.simulations import listed, simulated
    from ecoserve.sweep.sizing import prepare
    from ecoserve.sweep.sizing_page import answers_table, headline, unsure, write_page

    options = taken(PlanOptions, given)
    rate = parsed_rate(options.rate)
    if rate == float("inf"):
        raise ConfigError("all at once is no load over time", where="--rate", fix="requests a second, or recorded")
    settings = checked(SimulateSettings, {"requests": 1, **given})
    common = {**_DEFAULTS, **{name: getattr(settings, name) for name in given}}
    common |= {k: located(v, Path.cwd()) for k in ("trace", "model", "tokenizer") if (v := common.get(k))}
    common |= {"rate_rps": rate, "split": chosen_split(options.split, recorded=rate is None)}
    gpus = listed(options.gpu, "--gpu")
    sizings = prepare(
        common,
        gpus=gpus,
        tps=[1] if gpus == [LINEAR] else _numbers(options.tp, "--tp", int, 1),
        policies=listed(options.policy, "--policy"),
        routers=listed(options.router, "--router"),
        shares=_numbers(options.share, "--share", float, 0, 1),
        seeds=range(seed, seed + options.seeds),
        most=options.max_gpus,
        slower_by=options.slower,
    )
    console = stderr_console(quiet)
    meta = simulated(sizings.load, "GPUs for an SLO", shlex.join(["ecoserve", *sys.argv[1:]]))
    for note in meta.notes:
        console.print(f"note: {note}")
    folder = ResultFolder.create(output, meta, resume=options.resume)
    jobs = int(hardware()["cores"]) if options.jobs is None else options.jobs
    try:
        tally = execute([], folder, jobs=jobs, searches=sizings, console=None if quiet else console)
    finally:
        # After Ctrl-C too: what is finished can be read at once.
        rows = sizings.results(folder)
        said = list(unsure(rows, sizings.load, sizings.window_s))
        result = {
            "answers": [row.model_dump(mode="json") for row in rows],
            "unsure": {statement.heading: statement.text for statement in said},
            "meta": folder.summary().meta.model_dump(mode="json"),
        }
        write_json(folder.path / "plan.json", result)
        page = write_page(rows, meta, said, folder.path / "plan.html")
    emit_json(result, json)
    _show(answers_table(rows), console)
    for statement in said:
        console.print(f"{statement.heading}: {statement.text}")
    console.print(f"{page}")
    if tally.failed:
        failure = folder.summary().failures[0]
        raise RunError(f"{tally.failed} runs failed, the first with: {failure.error}", where=str(output))
    if not all(row.answer for row in rows):
        raise ThresholdError(headline(rows), where="ecoserve plan")


def _numbers(text: str, option: str, kind: type[Any], least: float, most: float = float("inf")) -> list[Any]:
    from ecoserve.errors import ConfigError
    from ecoserve.sweep.simulations import listed

    try:
        numbers = [kind(part) for part in listed(text, option)]
    except ValueError:
        numbers = []
    if not numbers or not all(least <= n <= most and n > 0 for n in numbers):
        raise ConfigError(f"{text!r} is no list of numbers from {least:g} to {most:g}", where=option)
    return numbers


def _show(table: Table, console: Console) -> None:
    from rich.table import Table as RichTable

    shown = RichTable(box=None, pad_edge=False)
    for title in ("GPU", *(column.title for column in table.columns)):
        shown.add_column(title, no_wrap=True)
    for group, cells in table.grouped():
        shown.add_row(group, *(cell.text or "" for cell in cells))
    if not console.is_terminal:
        console.width = 200
    console.print(shown)
