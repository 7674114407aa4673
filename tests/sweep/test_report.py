"""The page itself: one file, nothing fetched, nothing hostile gets through, whatever the folder holds."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import small_runs

from ecoserve.pages import TEMPLATES
from ecoserve.pages.plots import SLOTS
from ecoserve.sweep.execute import execute
from ecoserve.sweep.expansion import expand
from ecoserve.sweep.identity import PlannedRun
from ecoserve.sweep.plan import SweepPlan
from ecoserve.sweep.report import render, write_report
from ecoserve.sweep.reporting.report_data import Details
from ecoserve.sweep.results import ResultFolder
from ecoserve.sweep.summary import Meta, PredictorRow, Summary, TraceInfo

#: Every figure of the full report and how many plots it has.
FIGURES = {
    "accuracy-latency": 2, "accuracy-jct": 2, "accuracy-throughput": 2, "accuracy-goodput": 2, "pressure": 1,
    "rate-latency": 1, "rate-slo": 2, "slo-scale": 2, "map-accuracy": 1, "pareto": 1, "kv": 4, "ladder": 1,
    "fairness": 1, "calibration": 2,
}  # fmt: skip
HOSTILE = "<script>alert('x')</script><img src=http://evil.example/x onerror=alert(1)>"


def plan(**more: object) -> SweepPlan:
    base = {
        "trace": "synthetic",
        "lengths": ["true", "noise:0.3", "noise:1", "none"],
        "rates": [3.0, 4.5],
        "requests": 60,
        "settings": {"slo_scale": 4},
        "run": "small_runs:queue",
        "conditions": {
            "pressure": {},
            "no-pressure": {"rates": 3.0, "lengths": ["true", "noise:0.3"], "settings": {"blocks": 60}},
        },
    }
    return SweepPlan.model_validate({**base, **more})


def fill(folder: ResultFolder) -> ResultFolder:
    """A sweep, runs on an "engine", predictors."""
    execute(expand(plan()), folder, function="small_runs:queue", jobs=0)
    for policy, lengths in (("vllm", "none"), ("ecoserve", "noise:0.3"), ("ecoserve", "true")):
        for seed in range(3):
            settings = {"policy": policy, "lengths": lengths, "rate_rps": 4.0, "seed": seed, "requests": 50}
            run = PlannedRun.of(settings, {"engine": "in-process", "condition": "pressure"})
            folder.add(run, small_runs.untyped(settings))
    folder.set_predictor("encoder", {"rows": 100, "mae_tokens": 46.2, "within_50": 0.67, "kendall_tau": 0.62})
    folder.set_predictor("constant-median", {"rows": 100, "mae_tokens": 79.9, "within_50": 0.36})
    return folder


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> ResultFolder:
    folder = fill(ResultFolder.create(tmp_path_factory.mktemp("report") / "out", Meta(title="A <b>bold</b> title")))
    write_report(folder)
    return folder


class Page(HTMLParser):
    """Elements with their attributes, text by element, and tables as rows of text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "br", "img", "line", "circle", "path", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("line", "circle", "path"):
            return
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.texts.append((self.open[-1], data.strip()))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def visible(self) -> str:
        return " ".join(text for tag, text in self.texts if tag not in ("script", "style"))


def page_of(folder: ResultFolder) -> Page:
    return Page((folder.path / "report.html").read_text(encoding="utf-8"))


def addresses(page: Page) -> list[str]:
    names = ("src", "href", "srcset", "action", "data", "poster", "xlink:href", "background", "formaction", "ping")
    return [value or "" for _, attributes in page.elements for name, value in attributes.items() if name in names]


def test_nothing_is_fetched(full):
    page = page_of(full)
    assert all(address.startswith(("data:", "#")) for address in addresses(page))
    style = "\n".join(text for tag, text in page.texts if tag == "style")
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = [m["content"] for m in page.of("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "http" not in policy


def test_elements_are_closed_in_order(full):
    assert page_of(full).open == []


def test_every_link_in_the_page_leads_somewhere(full):
    page = page_of(full)
    ids = [attributes["id"] for _, attributes in page.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    assert {a["href"].removeprefix("#") for a in page.of("a") if (a.get("href") or "").startswith("#")} <= set(ids)


def test_all_parts_are_there(full):
    page = page_of(full)
    sections = [attributes.get("id") for attributes in page.of("section")]
    assert sections == [
        "answer", "predictor", "engine", "accuracy", "pressure", "rates", "trade", "kv", "wrong", "fairness",
        "lengths", "levels", "words", "how",
    ]  # fmt: skip
    assert len(page.of("table")) == 3 + len(FIGURES)  # predictors, engine, all settings, and what is behind the plots
    assert "Encoder (fine-tuned transformer)" in page.visible
    assert "ecoserve, true lengths (oracle)" in page.visible


def test_tables_have_headers_and_captions(full):
    text = (full.path / "report.html").read_text(encoding="utf-8")
    tables = re.findall(r"<table>.*?</table>", text, re.S)
    assert tables
    for table in tables:
        assert table.count("<caption>") == 1
        assert 'scope="col"' in table
        assert 'scope="row"' in table


def test_plots_have_words_and_data(full):
    page = page_of(full)
    plots = [a for a in page.of("div") if a.get("class") == "plot"]
    assert len(plots) == sum(FIGURES.values())
    assert all(len(plot["aria-label"] or "") > 60 for plot in plots)
    (data,) = [text for tag, text in page.texts if tag == "script" and text.startswith("{")]
    specs = json.loads(data)
    assert set(specs) == {plot["id"] for plot in plots}
    slots = {trace["meta"]["slot"] for spec in specs.values() for trace in spec["data"]}
    css = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    assert slots <= set(range(SLOTS))
    assert css.count(f"--slot-{SLOTS - 1}:") == 3  # light, dark by choice, dark by the system


def test_downloads_hold_the_numbers_of_the_runs(full):
    page = page_of(full)
    links = {a["download"]: a["href"] or "" for a in page.of("a") if "download" in a}
    assert set(links) == {f"{name}.csv" for name in ("predictors", "engine", "virtual", *FIGURES)}
    lines = base64.b64decode(links["virtual.csv"].partition("base64,")[2]).decode().splitlines()
    runs = [
        run
        for run in full.summary().runs
        if (run.engine, run.condition, run.policy, run.rate_rps) == ("virtual", "pressure", "vllm", 3.0)
    ]
    mean = sum(run.normalized_latency_mean_ms for run in runs) / len(runs)
    assert lines[1].startswith('"3 requests/s, pressure",vLLM default,')
    assert float(lines[1].split(",")[3]) == pytest.approx(mean)


def test_titles_are_text(full):
    assert "A <b>bold</b> title" in page_of(full).visible


def test_rebuilding_from_the_folder_gives_the_same_page(full):
    before = (full.path / "report.html").read_text(encoding="utf-8")
    write_report(ResultFolder.open(full.path))
    assert (full.path / "report.html").read_text(encoding="utf-8") == before
    assert render(Summary.model_validate_json((full.path / "summary.json").read_text("utf-8")), Details(full)) == before


def test_hostile_strings_stay_text(full):
    summary = full.summary()
    runs = [run.model_copy(update={"condition": f"pressure {HOSTILE}"}) for run in summary.runs]
    hostile = Summary(
        runs=[*runs, runs[0].model_copy(update={"policy": HOSTILE, "lengths": f"predicted:/a/{HOSTILE}"})],
        failures=[{"run": HOSTILE, "policy": HOSTILE, "error": HOSTILE}],
        predictor={HOSTILE: PredictorRow(rows=1, mae_tokens=1.0)},
        meta=Meta(
            title=HOSTILE,
            trace=TraceInfo(source=HOSTILE),
            versions={HOSTILE: HOSTILE},
            hardware={HOSTILE: HOSTILE},
            commands=[HOSTILE],
            notes=[HOSTILE],
            settings={HOSTILE: HOSTILE},
        ),
    )
    text = render(hostile)
    page = Page(text)
    assert page.open == []
    assert page.of("img") == []
    assert len(page.of("script")) == len(page_of(full).of("script"))
    assert not any("onerror" in attributes for _, attributes in page.elements)
    assert all(address.startswith(("data:", "#")) for address in addresses(page))
    assert "alert('x')" in page.visible
    # In plots: Plotly knows a little markup of its own, so names reach it escaped, and JSON cannot end its element.
    (data,) = [t for tag, t in page.texts if tag == "script" and t.startswith("{")]
    assert "<" not in data
    assert "<script>" not in json.dumps(json.loads(data))


def test_no_runs_at_all(tmp_path):
    folder = ResultFolder.create(tmp_path / "out", Meta())
    write_report(folder)
    page = page_of(folder)
    assert "Nothing has been run in this folder yet." in page.visible
    assert page.open == []
    assert page.of("table") == []
    assert (folder.path / "report.html").stat().st_size < 200_000  # no plots, no Plotly


def test_only_failed_runs(tmp_path):
    folder = ResultFolder.create(tmp_path / "out", Meta())
    execute(expand(plan())[:3], folder, function="small_runs:refuses", jobs=0)
    write_report(folder)
    page = page_of(folder)
    assert "All 3 runs failed, so there is nothing to show." in page.visible
    assert "synthetic: no such trace" in page.visible


def test_one_seed(tmp_path):
    folder = ResultFolder.create(tmp_path / "out", Meta())
    execute(expand(plan(seeds=4)), folder, function="small_runs:queue", jobs=0)
    write_report(folder)
    page = page_of(folder)
    assert "in the one seed that was run: a direction, not a result" in page.visible
    assert "· too few seeds" in page.visible
    assert "nan" not in page.visible.lower().split()


def test_recorded_arrivals(tmp_path):
    folder = ResultFolder.create(tmp_path / "out", Meta())
    execute(expand(plan(rates="recorded", conditions={})), folder, function="small_runs:queue", jobs=0)
    write_report(folder)
    assert "recorded arrivals" in page_of(folder).visible


def test_synthetic_workload_is_said_loudly(full, tmp_path):
    assert "Synthetic workload." not in page_of(full).visible
    summary = full.summary()
    page = Page(render(summary.model_copy(update={"meta": Meta(synthetic=True)})))
    (banner,) = [a for a in page.of("div") if a.get("class") == "banner"]
    assert banner["role"] == "note"
    assert page.visible.index("Synthetic workload.") < page.visible.index("The answer")


def test_many_policies_share_the_palette(tmp_path):
    folder = ResultFolder.create(tmp_path / "out", Meta())
    names = [f"policy-{i}" for i in range(SLOTS + 3)]
    crowded = plan(policies=["vllm", "ecoserve", *names], lengths="true", rates=3.0, conditions={}, requests=20)
    execute(expand(crowded), folder, function="small_runs:queue", jobs=0)
    write_report(folder)
    assert all(name in page_of(folder).visible for name in names)


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_a_browser_draws_every_plot_and_has_nothing_to_complain_about(full, tmp_path):
    flags = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--enable-logging=stderr", "--virtual-time-budget=10000",
    ]  # fmt: skip
    done = subprocess.run(
        [
            str(BROWSER),
            *flags,
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
            (full.path / "report.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "CONSOLE" not in done.stderr
    assert len(re.findall(r'class="plot js-plotly-plot"', done.stdout)) == sum(FIGURES.values())
    assert "main-svg" in done.stdout
    assert 'id="theme" hidden' not in done.stdout


def test_templates_are_shipped_with_the_package():
    names = {file.name for file in Path(TEMPLATES).iterdir()}
    assert names == {"page.html.j2", "macros.html.j2", "page.css", "page.js"}
