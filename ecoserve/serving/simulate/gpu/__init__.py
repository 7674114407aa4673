"""Modelled GPUs: measured kernel times, put together as vLLM runs them.

``gpu_model(gpu, load_shape(model), tp)`` has ``seconds(work)``, ``host_s(work)`` and ``kv_blocks(...)``.
"""

from ecoserve.serving.simulate.gpu.hardware import Link, find_gpu, gpu_names
from ecoserve.serving.simulate.gpu.model import GpuModel, HostTimes, gpu_model
from ecoserve.serving.simulate.gpu.shapes import ModelShape, built_in_shapes, load_shape

__all__ = [
    "GpuModel",
    "HostTimes",
    "Link",
    "ModelShape",
    "built_in_shapes",
    "find_gpu",
    "gpu_model",
    "gpu_names",
    "load_shape",
]
