"""Tables are made once for all tests here, in a cache of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ecoserve.serving.simulate.gpu.model import GpuModel, gpu_model
from ecoserve.serving.simulate.gpu.shapes import load_shape


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _cache(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests here only: vLLM keeps what it knows of models in the same place, and finds it out in a new process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_folder))


@pytest.fixture(scope="session")
def machine() -> Callable[..., GpuModel]:
    """A model on a GPU; each is made once."""
    made: dict[tuple[object, ...], GpuModel] = {}

    def make(gpu: str = "h100_sxm", model: str = "llama-3.1-8b", tp: int = 1, expert_ranks: int = 1) -> GpuModel:
        key = (gpu, model, tp, expert_ranks)
        if key not in made:
            made[key] = gpu_model(gpu, load_shape(model), tp, expert_ranks=expert_ranks)
        return made[key]

    return make
