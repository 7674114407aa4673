"""Tables are made once for all tests here, in a cache of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from ecoserve.serving.simulate.gpu.model import GpuModel, gpu_model
from ecoserve.serving.simulate.gpu.shapes import load_shape


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def machine(_cache: None) -> Callable[..., GpuModel]:
    """A model on a GPU; each is made once."""
    made: dict[tuple[object, ...], GpuModel] = {}

    def make(gpu: str = "h100_sxm", model: str = "llama-3.1-8b", tp: int = 1, expert_ranks: int = 1) -> GpuModel:
        key = (gpu, model, tp, expert_ranks)
        if key not in made:
            made[key] = gpu_model(gpu, load_shape(model), tp, expert_ranks=expert_ranks)
        return made[key]

    return make
