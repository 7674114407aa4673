"""Ways to run a predictor's network: what ``predictor_speed.py`` compares.

Each is a function from a loaded encoder predictor to something that takes ids and mask and gives logits, put in the
network's place; reading, tokenizing, batching and calibrating stay the same for all. ONNX Runtime and OpenVINO are no
dependencies of ecoserve: where they are not installed, their rows are left out.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ecoserve.predictor.encoder.inference import for_cpu
from ecoserve.predictor.encoder.predictor import EncoderPredictor

Network = Callable[[torch.Tensor, torch.Tensor], dict[str, torch.Tensor]]
Make = Callable[[EncoderPredictor, int], Network]


def eager(predictor: EncoderPredictor, threads: int) -> Network:
    return predictor.model


def packed_float32(predictor: EncoderPredictor, threads: int) -> Network:
    return _really_packed(predictor, for_cpu(predictor.model, "float32"))


def packed_bfloat16(predictor: EncoderPredictor, threads: int) -> Network:
    return _really_packed(predictor, for_cpu(predictor.model, "bfloat16"))


def default(predictor: EncoderPredictor, threads: int) -> Network:
    network: Network = predictor._network()
    return network


def compiled(predictor: EncoderPredictor, threads: int) -> Network:
    network: Network = torch.compile(copy.deepcopy(predictor.model), dynamic=True)
    return network


def autocast_float16(predictor: EncoderPredictor, threads: int) -> Network:
    def run(ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.autocast(ids.device.type, dtype=torch.float16):
            found: dict[str, torch.Tensor] = predictor.model(ids, mask)
            return found

    return run


def torch_int8(predictor: EncoderPredictor, threads: int) -> Network:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.quantization import quantize_dynamic

        network: Network = quantize_dynamic(copy.deepcopy(predictor.model), {torch.nn.Linear}, dtype=torch.qint8)
    return network


def onnx_float32(predictor: EncoderPredictor, threads: int) -> Network:
    return _onnx_session(_exported(predictor), threads)


def onnx_fused(predictor: EncoderPredictor, threads: int) -> Network:
    from onnxruntime.transformers import optimizer

    config, source = predictor.model.body.config, _exported(predictor)
    fused = optimizer.optimize_model(
        str(source), "bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size, opt_level=1
    )
    fused.save_model_to_file(str(source.with_name("fused.onnx")))
    return _onnx_session(source.with_name("fused.onnx"), threads)


def onnx_int8(predictor: EncoderPredictor, threads: int) -> Network:
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.preprocess import quant_pre_process

    source = _exported(predictor)
    prepared, target = source.with_name("prepared.onnx"), source.with_name("int8.onnx")
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    quantize_dynamic(str(prepared), str(target), weight_type=QuantType.QInt8, per_channel=True)
    return _onnx_session(target, threads)


def openvino_float32(predictor: EncoderPredictor, threads: int) -> Network:
    return _openvino(_exported(predictor), threads, "f32")


def openvino_bfloat16(predictor: EncoderPredictor, threads: int) -> Network:
    return _openvino(_exported(predictor), threads, "bf16")


def openvino_int8(predictor: EncoderPredictor, threads: int) -> Network:
    """Weights and activations in 8 bits; the ranges are from requests that are made up of the vocabulary."""
    import nncf
    import openvino

    source = _exported(predictor)
    draw = np.random.default_rng(0)
    words = predictor.model.body.embeddings.word_embeddings.num_embeddings
    shapes = [(1, int(draw.integers(8, 120))) for _ in range(16)]
    ids = [draw.integers(words // 20, words, shape) for shape in shapes]
    samples = [{"input_ids": i, "attention_mask": np.ones_like(i)} for i in ids]
    model = openvino.Core().read_model(str(source))
    model = nncf.quantize(
        model, nncf.Dataset(samples), model_type=nncf.ModelType.TRANSFORMER, fast_bias_correction=True
    )
    target = source.with_name("int8.xml")
    openvino.save_model(model, str(target))
    return _openvino(target, threads, "f32")


#: name -> (how it is made, the packages it needs, the device it runs on or None for any)
ENGINES: dict[str, tuple[Make, tuple[str, ...], str | None]] = {
    "torch": (eager, (), None),
    "packed float32": (packed_float32, (), "cpu"),
    "packed bfloat16": (packed_bfloat16, (), "cpu"),
    "the default": (default, (), None),
    "torch float16 (autocast)": (autocast_float16, (), "cuda"),
    "torch int8 (dynamic)": (torch_int8, (), "cpu"),
    "ONNX Runtime float32": (onnx_float32, ("onnx", "onnxruntime"), "cpu"),
    "ONNX Runtime float32, fused": (onnx_fused, ("onnx", "onnxruntime"), "cpu"),
    "ONNX Runtime int8 (dynamic)": (onnx_int8, ("onnx", "onnxruntime"), "cpu"),
    "OpenVINO float32": (openvino_float32, ("onnx", "openvino"), "cpu"),
    "OpenVINO bfloat16": (openvino_bfloat16, ("onnx", "openvino"), "cpu"),
    "OpenVINO int8": (openvino_int8, ("onnx", "openvino", "nncf"), "cpu"),
    "torch.compile": (compiled, (), None),
}


def _really_packed(predictor: EncoderPredictor, network: Any) -> Network:
    if network is predictor.model:
        raise RuntimeError("this encoder cannot be packed on this machine")
    found: Network = network
    return found


class _Logits(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(input_ids, attention_mask)["logits"]
        return logits


def _exported(predictor: EncoderPredictor) -> Path:
    """The network as ONNX, any number of rows and tokens."""
    target = Path(tempfile.mkdtemp(prefix="predictor-speed-")) / "model.onnx"
    ids = torch.arange(32).view(2, 16) + 4
    mask = torch.ones_like(ids)
    mask[0, 10:] = 0
    axes = {0: "rows", 1: "tokens"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Logits(predictor.model),
            (ids, mask),
            str(target),
            input_names=["input_ids", "attention_mask"],
            output_names=["logits"],
            dynamic_axes={"input_ids": axes, "attention_mask": axes, "logits": {0: "rows"}},
            opset_version=17,
            dynamo=False,
        )
    return target


def _onnx_session(path: Path, threads: int) -> Network:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Threads that spin while they wait would cost CPU time that the others do not pay either.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        [logits] = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        return {"logits": torch.from_numpy(logits)}

    return run


def _openvino(path: Path, threads: int, precision: str) -> Network:
    import openvino

    core = openvino.Core()
    hints = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,
    }
    model = core.compile_model(core.read_model(str(path)), "CPU", hints)
    request, output = model.create_infer_request(), model.output(0)

    def run(ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        found = request.infer({"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        return {"logits": torch.from_numpy(np.array(found[output]))}

    return run
