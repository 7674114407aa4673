"""The encoder backend: a fine-tuned transformer that predicts, on the CPU with packed weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ecoserve.predictor.base import LengthPredictor, TrainingRun
from ecoserve.predictor.calibration import Calibration
from ecoserve.predictor.config import PredictorConfig
from ecoserve.predictor.encoder.settings import EncoderSettings
from ecoserve.predictor.encoder.tokenizing import RequestTokenizer
from ecoserve.predictor.text import RequestView

if TYPE_CHECKING:
    import torch

    from ecoserve.predictor.encoder.model import LengthEncoder


class EncoderPredictor(LengthPredictor):
    """A trained encoder (``model``, float32, as saved) and tokenizer, on the CPU unless moved with :meth:`to`.

    ``precision``: number format of the body's products on a CPU; may be set at any time.
    """

    Settings = EncoderSettings
    packages = ("torch", "transformers", "tokenizers")
    resumable = True
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    def __init__(
        self, config: PredictorConfig, calibration: Calibration, model: LengthEncoder, tokenizer: RequestTokenizer
    ) -> None:
        super().__init__(config, calibration)
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self._weights = tuple(model.parameters())
        self._running: tuple[object, torch.nn.Module] | None = None
        self._making = Lock()

    @classmethod
    def fit(cls, run: TrainingRun, settings: EncoderSettings) -> EncoderPredictor:
        """Fine-tune on ``run.fit``; ``run.held`` chooses the epoch."""
        from ecoserve.predictor.encoder.training import train_encoder

        model, tokenizer, about = train_encoder(run, settings)
        return cls(run.config.model_copy(update={"model": about}), Calibration(), model, tokenizer)

    @property
    def device(self) -> torch.device:
        return self.model.head.weight.device

    def to(self, device: str | torch.device) -> EncoderPredictor:
        """Move it to another device. Not while other threads are predicting."""
        self.model.to(device)
        return self

    def _logits(self, views: Sequence[RequestView]) -> npt.NDArray[np.float64]:
        from ecoserve.predictor.encoder.model import in_batches

        model, device = self._network(), self.device
        return in_batches(
            self.tokenizer(views),
            lambda ids, mask: model(ids.to(device), mask.to(device))["logits"],
            len(self.config.prior),
        )

    def _network(self) -> torch.nn.Module:
        """The network itself on a GPU; on a CPU its packed form, made anew when the network's weights have changed."""
        from ecoserve.predictor.encoder.inference import for_cpu

        # Another one whenever a weight has been written to, or moved.
        state = (self.precision, *((w.data_ptr(), w._version) for w in self._weights))
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

        from ecoserve.predictor.encoder.model import WEIGHTS

        state = {name: value.detach().cpu().contiguous() for name, value in self.model.state_dict().items()}
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
        self.tokenizer.save(folder)

    @classmethod
    def _load(cls, folder: Path, config: PredictorConfig, calibration: Calibration) -> EncoderPredictor:
        from safetensors.torch import load_file

        from ecoserve.predictor.encoder.model import WEIGHTS, from_config

        state = load_file(folder / WEIGHTS)
        model = from_config(config.model["encoder"], len(config.prior))
        model.load_state_dict(state, strict=True)
        return cls(config, calibration, model, RequestTokenizer.load(folder, int(config.model["max_length"])))


class FrozenEncoder:
    """A pretrained encoder as it comes, which embeds requests (:data:`ecoserve.predictor.baselines.Embed`)."""

    def __init__(self, folder: Path, max_length: int = 128) -> None:
        """Load the encoder in ``folder`` (:func:`~ecoserve.predictor.encoder.settings.find_encoder`).

        ``max_length``: tokens read of a request at most, or as many as the encoder has positions for.
        """
        import torch

        from ecoserve.predictor.encoder.inference import for_cpu
        from ecoserve.predictor.encoder.model import pretrained

        # The head is not used; the body runs as in predictors.
        model, config = pretrained(folder, torch.ones(1))
        self._model: Any = for_cpu(model.eval().requires_grad_(False))
        self._hidden = int(config["hidden_size"])
        most = int(config.get("max_position_embeddings", max_length))
        self._tokenizer = RequestTokenizer.load(folder, min(max_length, most))

    def __call__(self, views: Sequence[RequestView]) -> npt.NDArray[np.float32]:
        """Mean over the tokens, of length one: shape ``[n, hidden]``."""
        from torch.nn.functional import normalize

        from ecoserve.predictor.encoder.model import in_batches

        ids = self._tokenizer(views)
        found = in_batches(
            ids, lambda ids, mask: normalize(self._model.pooled(ids, mask), dim=1), self._hidden, most_tokens=math.inf
        )
        return found.astype(np.float32)
