"""The encoder predictor: a fine-tuned transformer at work.

Rule: requests are sorted by length and run in batches of a bounded number of tokens, in inference mode. On a CPU the
body runs with packed weights (:mod:`~ecoserve.predictor.encoder.inference`), made at the first request and made anew
when somebody has changed the network's weights. Any number of threads may ask at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from ecoserve.predictor.base import LengthPredictor
from ecoserve.predictor.calibration import Calibration
from ecoserve.predictor.config import Backend, PredictorConfig
from ecoserve.predictor.encoder.inference import Precision, for_cpu, state_of
from ecoserve.predictor.encoder.model import LengthEncoder, from_config
from ecoserve.predictor.encoder.tokenizing import RequestTokenizer
from ecoserve.predictor.text import RequestView

WEIGHTS = "model.safetensors"
#: Padded tokens in one forward pass, and rows.
_BATCH_TOKENS = 4096
_BATCH_ROWS = 64


class EncoderPredictor(LengthPredictor):
    """A trained encoder with its tokenizer, on the CPU unless moved with :meth:`to`.

    Attributes:
        model: the network as it was trained, float32; what is saved.
        precision: in what numbers the body multiplies on a CPU; may be set at any time.
    """

    backend: ClassVar[Backend] = "encoder"
    precision: Precision = "auto"

    def __init__(
        self, config: PredictorConfig, calibration: Calibration, model: LengthEncoder, tokenizer: RequestTokenizer
    ) -> None:
        super().__init__(config, calibration)
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self._weights = tuple(model.parameters())
        self._running: tuple[object, torch.nn.Module] | None = None
        self._making = Lock()

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.head.weight.device

    def to(self, device: str | torch.device) -> EncoderPredictor:
        """Move it to another device. Not while other threads are predicting."""
        self.model.to(device)
        return self

    def _logits(self, views: Sequence[RequestView]) -> npt.NDArray[np.float64]:
        ids = self.tokenizer(views)
        out = np.empty((len(ids), len(self.config.prior)), dtype=np.float64)
        model, device = self._network(), self.device
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        with torch.inference_mode():
            for rows in _batches(order, ids):
                inputs, mask = pad([ids[i] for i in rows])
                logits = model(inputs.to(device), mask.to(device))["logits"]
                out[rows] = logits.float().cpu().numpy()
        return out

    def _network(self) -> torch.nn.Module:
        """What computes: the network itself on a GPU, its packed form on a CPU."""
        state = (self.precision, state_of(self._weights))
        running = self._running
        if running is None or running[0] != state:
            with self._making:
                running = self._running
                if running is None or running[0] != state:
                    on_cpu = self.device.type == "cpu"
                    running = (state, for_cpu(self.model, self.precision) if on_cpu else self.model)
                    self._running = running
        return running[1]

    def _write(self, folder: Path) -> None:
        from safetensors.torch import save_file

        state = {name: value.detach().cpu().contiguous() for name, value in self.model.state_dict().items()}
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
        self.tokenizer.save(folder)

    @classmethod
    def _load(cls, folder: Path, config: PredictorConfig, calibration: Calibration) -> EncoderPredictor:
        from safetensors.torch import load_file

        state = load_file(folder / WEIGHTS)
        model = from_config(config.model["encoder"], len(config.prior))
        model.load_state_dict(state, strict=True)
        return cls(config, calibration, model, RequestTokenizer.load(folder, int(config.model["max_length"])))


def pad(ids: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of ``n`` token lists, both ``[n, longest]``. Padding is masked, so any id will do for it: 0."""
    longest = max(map(len, ids))
    inputs = torch.zeros((len(ids), longest), dtype=torch.long)
    mask = torch.zeros((len(ids), longest), dtype=torch.long)
    for row, tokens in enumerate(ids):
        inputs[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
        mask[row, : len(tokens)] = 1
    return inputs, mask


def _batches(order: Sequence[int], ids: Sequence[Sequence[int]]) -> list[list[int]]:
    """Cut ``order``, which ascends in length, into batches within both bounds."""
    batches: list[list[int]] = [[]]
    for i in order:
        rows = batches[-1]
        if rows and (len(rows) >= _BATCH_ROWS or (len(rows) + 1) * len(ids[i]) > _BATCH_TOKENS):
            batches.append([])
        batches[-1].append(i)
    return batches
