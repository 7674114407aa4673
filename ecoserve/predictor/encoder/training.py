"""Fine-tuning the encoder with the transformers Trainer.

The whole body is trained, its head ten times faster; both rates rise shortly, then fall to zero. The epoch with the
smallest held-out loss at its best temperature is kept. A checkpoint of the training is written every half minute: an
interrupted run goes on there and ends with the same weights as an uninterrupted one.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from torch.utils.data import Sampler
from transformers import EvalPrediction, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices

from ecoserve.errors import ConfigError, RunError
from ecoserve.predictor import checkpoint, hub
from ecoserve.predictor.base import TrainingRun
from ecoserve.predictor.calibration import likeliest_temperature
from ecoserve.predictor.encoder.model import LengthEncoder, pad, pretrained, quiet_transformers, started
from ecoserve.predictor.encoder.settings import EncoderSettings, find_encoder
from ecoserve.predictor.encoder.tokenizing import RequestTokenizer
from ecoserve.predictor.runtime import Progress, alone, first

#: Seconds between two checkpoints of the training.
SAVE_EVERY_S = 30.0
#: In a checkpoint of the training: it was written to its end.
_COMPLETE = "complete"
Row = dict[str, Any]


def train_encoder(
    run: TrainingRun, settings: EncoderSettings
) -> tuple[LengthEncoder, RequestTokenizer, dict[str, Any]]:
    """Fine-tune on ``run.fit``; ``run.held`` chooses the epoch. Network, tokenizer, and what a config must say."""
    run.progress("loading the encoder", 0, 1)
    bins, seed = run.config.bins, run.config.seed
    torch.manual_seed(seed)
    model, tokenizer, about = _load(settings, torch.tensor(run.config.prior, dtype=torch.float32))
    positions = getattr(model.body.config, "max_position_embeddings", None)
    if positions is not None and settings.max_length > positions:
        raise ConfigError(
            f"max_length {settings.max_length}, this encoder reads {positions} tokens", where="max_length"
        )
    # Sorted, so that a batch has little padding.
    held_rows = sorted(_rows(tokenizer(run.held.views), run.held.targets(bins)), key=lambda row: len(row["input_ids"]))
    arguments = _arguments(settings, run.work, seed)
    with quiet_transformers():
        trainer = _LengthTrainer(
            model=model,
            args=arguments,
            train_dataset=_rows(tokenizer(run.fit.views), run.fit.targets(bins, settings.smoothing)),
            eval_dataset=held_rows,
            data_collator=_collate,
            compute_metrics=_calibrated_loss,
            callbacks=[_Watch(run.progress)],
        )
        trainer.settings = settings
        trainer.remove_callback(PrinterCallback)
        last = newest_checkpoint(run.work) if run.resume else None
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    if not all(torch.isfinite(p).all() for p in model.parameters()):
        raise RunError("training diverged: the weights are not finite", fix="lower the learning rates")
    model.to("cpu")
    precision = "bfloat16" if arguments.bf16 else "float32"
    about |= {"max_length": settings.max_length, "trained_in": precision}
    if start := settings.start():
        about["started_from"] = start
    return model, tokenizer, about


def _load(settings: EncoderSettings, prior: torch.Tensor) -> tuple[LengthEncoder, RequestTokenizer, dict[str, Any]]:
    """The network before training, its tokenizer, and what the config records of the body."""
    if settings.start_from is not None:
        folder = hub.locate(settings.start_from)
        earlier, _ = checkpoint.read(folder)
        about = {"encoder": earlier.model["encoder"], "encoder_from": earlier.model.get("encoder_from", "checkpoint")}
        with checkpoint.damage_of(folder):
            model = started(folder, about["encoder"], prior)
            return model, RequestTokenizer.load(folder, settings.max_length), about
    folder, origin = find_encoder(settings.encoder)
    try:
        model, config = pretrained(folder, prior)
        return model, RequestTokenizer.load(folder, settings.max_length), {"encoder": config, "encoder_from": origin}
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, SafetensorError) as error:
        line = " ".join(str(error).split())[:200]
        raise ConfigError(f"the encoder cannot be loaded: {line}", where=settings.encoder) from error


def newest_checkpoint(work: Path) -> Path | None:
    """The newest complete checkpoint of an interrupted training."""
    found = [p for p in work.glob("checkpoint-*") if (p / _COMPLETE).exists()]
    return max(found, key=lambda p: int(p.name.rpartition("-")[2]), default=None)


def _depth(name: str) -> int:
    """Which layer of the body a parameter is in, the first being 1; 0 for embeddings and whatever layers share."""
    found = re.search(r"\blayers?\.(\d+)\.", name)
    return int(found[1]) + 1 if found else 0


class _LengthTrainer(Trainer):
    """The Trainer with a learning rate by depth, and batches of like lengths in an order that only the seed decides."""

    settings: EncoderSettings

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        found = model(**inputs)
        return (found["loss"], found) if return_outputs else found["loss"]

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if getattr(self, "optimizer", None) is None:
            groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
            depths = {name: _depth(name) for name, _ in self.model.named_parameters()}
            top = max(depths.values())
            for name, value in self.model.named_parameters():
                rate = self.settings.body_lr * self.settings.layer_decay ** (top - depths[name])
                if name.startswith("head."):
                    rate = self.settings.head_lr
                decay = self.settings.weight_decay if value.ndim > 1 else 0.0
                groups.setdefault((rate, decay), []).append(value)
            # One kernel for the whole step: an eighth of the time on a CPU.
            fused = all(p.device.type in ("cpu", "cuda") for p in self.model.parameters())
            self.optimizer = torch.optim.AdamW(
                [{"params": values, "lr": lr, "weight_decay": decay} for (lr, decay), values in groups.items()],
                fused=fused,
            )
        return cast(torch.optim.Optimizer, self.optimizer)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        rows = self.train_dataset if train_dataset is None else train_dataset
        return _LikeLengths([len(r["input_ids"]) for r in rows], self.args.train_batch_size, self.args.seed)


class _LikeLengths(Sampler[int]):
    """Random order, neighbours of like length; seed and epoch alone decide it, so a resumed run repeats it."""

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch)
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))


class _Watch(TrainerCallback):
    """Reports progress, asks for a checkpoint now and then, and marks complete ones."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.saved_at = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        self.progress("fine-tuning", state.global_step, state.max_steps)
        # Several processes would have to agree on the time; they save after each epoch only.
        if alone() and time.monotonic() - self.saved_at >= SAVE_EVERY_S:
            control.should_save = True
        return control

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if first():
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / _COMPLETE).touch()
        self.saved_at = time.monotonic()


def multiplies_in_bfloat16() -> bool:
    """Whether this machine's accelerator, or else its CPU, has instructions for bfloat16 products."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu.get_capabilities().get("avx512_bf16")) and not torch.backends.mps.is_available()


def _arguments(settings: EncoderSettings, work: Path, seed: int) -> TrainingArguments:
    bfloat16 = settings.precision == "bfloat16" or (settings.precision == "auto" and multiplies_in_bfloat16())
    return TrainingArguments(
        bf16=bfloat16,
        use_cpu=bfloat16 and not torch.cuda.is_available(),
        output_dir=str(work),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=64,
        learning_rate=settings.body_lr,
        lr_scheduler_type="linear",
        warmup_steps=settings.warmup,
        weight_decay=settings.weight_decay,
        seed=seed,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_calibrated_loss",
        greater_is_better=False,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def _calibrated_loss(found: EvalPrediction) -> dict[str, float]:
    return {"calibrated_loss": likeliest_temperature(np.asarray(found.predictions), np.asarray(found.label_ids))[1]}


def _rows(ids: list[list[int]], targets: npt.NDArray[np.float32]) -> list[Row]:
    return [{"input_ids": tokens, "labels": target} for tokens, target in zip(ids, targets, strict=True)]


def _collate(rows: list[Row]) -> dict[str, torch.Tensor]:
    inputs, mask = pad([r["input_ids"] for r in rows])
    return {
        "input_ids": inputs,
        "attention_mask": mask,
        "labels": torch.from_numpy(np.stack([r["labels"] for r in rows])),
    }
