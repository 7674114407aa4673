"""What all tests share: an offline environment, models made on the spot, and the order of tests (quick ones first)."""

from __future__ import annotations

import gc
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from tiny_model import make_config_only, make_tiny_model

# Before anything imports vLLM, torch or a tokenizer: nothing is fetched, nothing is reported, cores are shared.
for _name, _value in {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_WAIT_POLICY": "PASSIVE",
    "OMP_NUM_THREADS": "1",  # for networks this small more threads cost more, and tests run in parallel
}.items():
    os.environ.setdefault(_name, _value)

ROOT = Path(__file__).resolve().parent.parent

# Where Python must not write bytecode beside its sources, every process would compile all of vLLM again.
if sys.dont_write_bytecode:
    sys.dont_write_bytecode = False
    sys.pycache_prefix = os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix or str(ROOT / ".cache" / "bytecode")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# No test looks at what a power cut leaves, and a shared disk takes its time.
os.fsync = lambda fd: None

# Tests import what stays until the end: the collector looks at none of it, now or later.
gc.disable()

# A shell that starts this in the background makes it deaf to Ctrl-C, and every process that it starts too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Machines are shared: how long one example takes says nothing about the code.
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")

#: real data that some machines have beside the checkout; tests that want it skip where it is not
SHARED_DATA = ROOT.parent / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run engines and servers last: what is quick to fail fails first. In parallel they go first: all end together."""
    weights = {"slow": 1, "engine": 2, "server": 4}

    def cost(item: pytest.Item) -> int:
        return sum(weight for name, weight in weights.items() if item.get_closest_marker(name))

    parallel = "PYTEST_XDIST_WORKER" in os.environ
    heaviest = dict.fromkeys((item.path for item in items), 0)
    for item in items:
        heaviest[item.path] = max(heaviest[item.path], cost(item))
    items.sort(key=lambda item: (-heaviest[item.path], 0) if parallel else (0, cost(item)))


def pytest_collection_finish() -> None:
    """All modules are imported."""
    gc.freeze()
    gc.enable()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """An engine collects garbage eight times over all that it has imported, and unfreezes that when it ends."""
    if item.get_closest_marker("engine"):
        gc.freeze()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; skips the test where there is none."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no ../shared/data here")
    return SHARED_DATA


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A temporary folder with a short path: that of a socket has at most 107 characters."""
    with tempfile.TemporaryDirectory(prefix="es") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random Llama, its tokenizer and a chat template (see scripts/tiny_model.py)."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def model_config_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with only the config.json of that model: all that vLLM's scheduler needs."""
    return make_config_only(tmp_path_factory.mktemp("models") / "config-only")
