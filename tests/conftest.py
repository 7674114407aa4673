"""What all tests share: an offline environment, models made on the spot, and the order of tests (quick ones first)."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

# Before anything imports vLLM, torch or a tokenizer: nothing is fetched, nothing is reported, two cores are shared.
for _name, _value in {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": str(min(4, len(os.sched_getaffinity(0)))),
}.items():
    os.environ.setdefault(_name, _value)

ROOT = Path(__file__).resolve().parent.parent
#: real data that some machines have beside the checkout; tests that want it skip where it is not
SHARED_DATA = ROOT.parent / "shared" / "data"


def _load_script(name: str) -> ModuleType:
    """Import ``scripts/<name>.py``, which is no package, by its path."""
    key = f"ecoserve_scripts_{name}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, ROOT / "scripts" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[key] = module
        spec.loader.exec_module(module)
    return sys.modules[key]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run engines and servers last: what is quick to fail fails first."""

    def cost(item: pytest.Item) -> int:
        return sum(weight for name, weight in (("engine", 1), ("server", 2)) if item.get_closest_marker(name))

    items.sort(key=cost)


@pytest.fixture(scope="session")
def load_script() -> Callable[[str], ModuleType]:
    """Import a module of ``scripts/`` by its name."""
    return _load_script


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; skips the test where there is none."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no ../shared/data here")
    return SHARED_DATA


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random Llama, its tokenizer and a chat template (see scripts/tiny_model.py)."""
    path: Path = _load_script("tiny_model").make_tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama")
    return path


@pytest.fixture(scope="session")
def model_config_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with only the config.json of that model: all that vLLM's scheduler needs."""
    path: Path = _load_script("tiny_model").make_config_only(tmp_path_factory.mktemp("models") / "config-only")
    return path
