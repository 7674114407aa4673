"""Whatever a user gives that cannot be used ends in one line that names it, exit code 2, and nothing left behind.

``pytest tests/cli/test_bad_input.py -s`` prints each line.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import os
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest

from ecoserve.cli.main import COMMANDS, main

WORDS = [
    "apple",
    "river",
    "stone",
    "cloud",
    "music",
    "paper",
    "window",
    "garden",
    "silver",
    "orange",
    "planet",
    "mirror",
    "forest",
    "castle",
    "bridge",
]


def rows(n: int, **more: Any) -> list[dict[str, Any]]:
    """Alpaca rows whose prompts are not like each other."""
    rng = random.Random(7)
    return [
        {
            "instruction": " ".join(rng.sample(WORDS, 8)),
            "input": "",
            "output": " ".join(rng.choices(WORDS, k=rng.randint(2, 40))),
            "runs": [i + 1, i + 2],
            **more,
        }
        for i in range(n)
    ]


def as_json(content: Any) -> bytes:
    return json.dumps(content).encode()


def as_table(*lines: str) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def as_parquet(content: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(content), file)
    return file.getvalue()


def as_zip(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("trace.json", content)
    return file.getvalue()


def damaged(packed: bytes) -> bytes:
    return packed[:40] + bytes(b ^ 0xFF for b in packed[40:60]) + packed[60:]


COUNTS = "prompt_tokens,response_tokens"
ASKED = {"messages": [{"role": "user", "content": "And now?"}]}


def files() -> dict[str, bytes]:
    """Every file that the cases below name."""
    good = rows(100)
    return {
        "good.json": as_json(good),
        # Files that are not whole, or not what they seem.
        "nothing.json": b"",
        "list.json": b"[]",
        "header.csv": as_table(COUNTS),
        "cut.json": as_json(good[:2])[:-20],
        "cut.json.gz": gzip.compress(as_json(good))[:-40],
        "damaged.json.gz": damaged(gzip.compress(as_json(good))),
        "damaged.json.bz2": damaged(bz2.compress(as_json(good))),
        "damaged.parquet": as_parquet(good)[:-30],
        "packed.zip": as_zip(as_json(good)),
        "binary.json": bytes(range(256)) * 8,
        "words.txt": b"hello\n",
        # JSON that is none, or too much of it.
        "comma.jsonl": as_json(good[0]) + b'\n{"instruction" "b"}\n' + b'{"instruction": "c"}\n' * 3,
        "deep.json": b"[" + b'{"a":' * 100_000,
        "digits.json": b'{"a": ' + b"1" * 5000 + b"}",
        "endless.jsonl": b'{"instruction": "' + b"x" * (4 << 20),
        "numbers.json": b"[1, 2, 3]",
        "twice.json": b'[{"instruction": "first", "instruction": "", "output": "b"}]',
        # Rows without what is needed, or with nonsense in its place.
        "columns.csv": as_table("a,b", "1,2"),
        "strange.json": as_json([{"x": 1}, {"x": 2}]),
        "negative.csv": as_table(COUNTS, "5,-5", "6,-6"),
        "nan.csv": as_table(COUNTS, "5,NaN", "6,nan"),
        "strings.jsonl": b'{"prompt": "a", "response_tokens": "many"}\n{"prompt": "b", "response_tokens": "few"}\n',
        "absurd.csv": as_table(COUNTS, "5,99999999"),
        "times.csv": as_table(f"{COUNTS},arrival_s", "5,5,noon", "5,5,-3"),
        "failed.csv": as_table("Timestamp,Model,Request tokens,Response tokens", "5,GPT-4,7,0"),
        "surrogates.json": as_json([{"instruction": "p", "output": "\ud83d"}]),
        "empty_answers.json": as_json(rows(60, output="")),
        "unanswered.jsonl": as_json(ASKED),
        "batch_input.jsonl": as_json({"custom_id": "a", "body": ASKED}),
        "bench.json": as_json({"request_throughput": 1.0, "total_input_tokens": 5, "model_id": "m"}),
        "newer.jsonl": b'{"ecoserve_trace": 99}\n{"conversation": "a", "turn": 0, "response_tokens": 4}\n',
        # Traces that are sound, but not for this.
        "cut_off.json": as_json(rows(100, finish_reason="length")),
        "one.json": as_json(good[:1]),
        "few.json": as_json(good[:20]),
        "lengths.csv": as_table(COUNTS, *(f"{i + 1},{i + 2}" for i in range(60))),
        # Other things than traces.
        "file": b"x",
        "load.yaml": b"requests: -3\n",
        "plan.yaml": b"trace: good.json\n",
        "prompts.jsonl": b'{"x": 1}\n',
        "damaged/config.json": b"{",
        "hollow/README.md": b"no config here",
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bad")
    for name, content in files().items():
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return root


#: A trace -> what is said of it. All are given to `train-predictor TRACE -o out`.
TRACES = [
    ("absent.json", "absent.json: no such file; check the path"),
    ("not/a/hub/id", "not/a/hub/id: no such file; check the path"),
    ("some/dataset", "some/dataset: is not in the cache of datasets, and HF_HUB_OFFLINE is set; unset it"),
    ("hollow", "hollow: is a folder, not a trace file; give one file in it"),
    ("nothing.json", "nothing.json: the trace is empty"),
    ("list.json", "list.json: the trace is empty"),
    ("header.csv", "header.csv: the trace is empty"),
    ("cut.json", "cut.json: JSON is cut off after 1 row"),
    ("cut.json.gz", "cut.json.gz: compressed file is cut off; download or copy it again"),
    ("damaged.json.gz", "damaged.json.gz: compressed file is damaged; download or copy it again"),
    ("damaged.json.bz2", "damaged.json.bz2: compressed file is damaged; download or copy it again"),
    ("damaged.parquet", "damaged.parquet: is not a readable Parquet file"),
    ("packed.zip", "packed.zip: is compressed with zip; unpack it"),
    ("binary.json", "binary.json: is neither JSON nor CSV nor Parquet, it starts with '\\x00\\x01"),
    ("words.txt", "words.txt: is neither JSON nor CSV nor Parquet, it starts with 'hello"),
    ("comma.jsonl", "comma.jsonl: row 2 is not JSON (Expecting ':' delimiter); correct or remove that row"),
    ("deep.json", "deep.json: row 1 is not JSON (a number is too long, or it is nested too deeply)"),
    ("digits.json", "digits.json: row 1 is not JSON (a number is too long, or it is nested too deeply)"),
    ("endless.jsonl", "endless.jsonl: JSON is cut off after 0 rows"),
    ("numbers.json", "numbers.json: unknown trace format, it has rows that are no objects (int); known formats are"),
    ("twice.json", "twice.json: no usable record: 1 rows in, 0 records kept, 1 dropped (1 empty prompt)"),
    ("columns.csv", "columns.csv: unknown trace format, it has fields a (str), b (str); known formats are"),
    ("strange.json", "strange.json: unknown trace format, it has fields x (int); known formats are"),
    ("negative.csv", "2 dropped (2 absurd length); plain needs columns like prompt_tokens and response_tokens"),
    ("nan.csv", "2 no answer length); plain needs"),
    ("strings.jsonl", "the first row has prompt 'a', response_tokens 'many'"),
    ("absurd.csv", "1 absurd length); plain needs"),
    ("times.csv", "2 arrival is not a time); plain needs"),
    ("failed.csv", "1 failed request (no answer tokens)); burstgpt needs"),
    ("surrogates.json", "1 answer is not valid Unicode); alpaca needs"),
    ("empty_answers.json", "60 empty answer); alpaca needs instruction, input, output; the first row has"),
    ("unanswered.jsonl", "1 no question with an answer); chat needs messages"),
    ("batch_input.jsonl", "without its response: join its output file to it); openai needs"),
    ("bench.json", "1 no single requests (saved without --save-detailed)); vllm-bench needs input_lens[]"),
    ("newer.jsonl", "newer.jsonl: layout 99 of an ecoserve trace is not known, only 1; update ecoserve"),
    (
        "cut_off.json",
        "training answers ended by themselves, need at least 50; collect answers with a larger max_tokens",
    ),
    ("one.json", "one.json: cannot be split, its 1 records make 1 group"),
    ("few.json", "few.json: 16 training rows with a text and a length, need at least 50"),
    ("lengths.csv", "lengths.csv: has lengths only, and a predictor learns from the texts of prompts"),
    ("load.yaml", "load.yaml: requests: input should be greater than or equal to 1, not -3"),
]

#: Options -> what is said of them. All are given to `train-predictor good.json -o out`.
OPTIONS = [
    ("--length-field nope", "good.json: no row has the field nope; the first has instruction (str)"),
    ("--length-field runs[7]", "good.json: no row has the field runs[7]; the first has"),
    ("--length-field runs[", "length_field: 'runs[' is not a field path; write name, name[3] or a.b[0]"),
    ("--length-field output", "100 output is not a whole number); alpaca needs"),
    ("--sample-field nope", "good.json: no row has the field nope; the first has"),
    ("--sample-field output", "100 output is not a list of lengths); alpaca needs"),
    ("--tokenizer ./nowhere", "tokenizer ./nowhere: no such folder; give a folder with tokenizer.json"),
    ("--tokenizer some/model", "tokenizer some/model: is not on this machine, and HF_HUB_OFFLINE is set"),
    ("--format alpaka", "there is no trace format 'alpaka'; use one of: auto, records"),
    ("--format sharegpt", "100 no conversation); sharegpt needs id, conversations[].from"),
    ("--backend abacus", "--backend: no backend 'abacus'; one of"),
    ("--max-rows 0", "--max-rows"),
    ("--seed -1", "--seed"),
    ("--json hollow", "--json hollow: is a folder; give a file in it, or - for stdout"),
    ("-o file", "file: is a file; give a folder for the checkpoint"),
    ("-o file/below", "file: is a file; give a folder for the checkpoint"),
    ("-o hollow", "hollow: holds other files (README.md) and no checkpoint of ecoserve; give an empty or a new folder"),
]

#: Whole command lines -> what is said.
LINES = [
    ("train-predictor good.json", "Missing option '-o'"),
    ("evaluate-predictor damaged cut.json", "damaged/config.json: is not valid JSON"),
    ("evaluate-predictor file cut.json", "file: is a file, not a checkpoint's folder; give the folder"),
    ("predict absent hello", "absent: no such checkpoint"),
    ("predict hollow hello", "hollow/config.json: is missing: this is no checkpoint; give the folder"),
    ("predict hollow", "TEXT: no prompt given; give a text, or --input FILE"),
    ("predict hollow --input absent.txt", "absent.txt: no such file; check the path"),
    ("predict hollow --input binary.json", "binary.json: is not UTF-8 text, it has the byte 0x80"),
    ("predict hollow --input deep.json", "deep.json:1: is nested too deeply; give the prompt as text"),
    ("predict hollow --input prompts.jsonl", "prompts.jsonl:1: neither a prompt nor chat messages; give a text"),
    ("replay cut.json", "needs --url"),
    ("replay absent.json --url http://localhost:1 --rate 1", "absent.json: no such file"),
    ("simulate --trace cut.json --rate 1 -o out", "cut.json: JSON is cut off after 1 row"),
    ("simulate --trace good.json --rate 0 -o out", "--rate: '0' is no rate; requests a second, inf, or recorded"),
    ("sweep absent.yaml -o out", "absent.yaml: there is no such file; check the path"),
    ("sweep words.txt -o out", "words.txt: is not a plan"),
    ("sweep plan.yaml -o out", "plan.yaml: rates: Field required; see docs/guides/sweep.md"),
    ("report hollow", "hollow: is not a result folder"),
    ("profile absent.json", "absent.json: no such file; check the path"),
    ("profile cut.json", "cut.json: JSON is cut off after 1 row"),
    ("profile columns.csv", "columns.csv: unknown trace format"),
    ("frobnicate", "No such command 'frobnicate'; see: ecoserve --help"),
]

TRAIN = "train-predictor {} -o out --backend lightgbm --rounds 5 --quiet"
CASES = [
    *((TRAIN.format(trace), named) for trace, named in TRACES),
    *((f"{TRAIN.format('good.json')} {options}", named) for options, named in OPTIONS),
    *(line for line in LINES if line[0].split()[0] in {c.name for c in COMMANDS} | {"frobnicate"}),
]


def check(folder: Path, line: str, named: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Run a command line; it must say ``named``, and leave everything as it was."""
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    code = main(line.split())
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert named in err
    assert err.count("\n") == 1
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before
    print(f"\n$ ecoserve {line}\n[{code}] {err}", end="")


@pytest.mark.parametrize(("line", "named"), CASES)
def test_it_is_named_in_one_line_and_nothing_is_left(
    folder: Path, line: str, named: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    check(folder, line, named, capsys)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / "good.json").chmod(0)
    try:
        check(folder, TRAIN.format("good.json"), "good.json: cannot be read (Permission denied)", capsys)
    finally:
        (folder / "good.json").chmod(0o644)
