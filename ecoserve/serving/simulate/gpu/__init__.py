"""Modelled GPUs: measured kernel times, put together as vLLM runs them.

``gpu_model(gpu, load_shape(model), tp)`` answers ``step_s(work)``, ``host_s(work)`` and ``kv_blocks(...)``.
"""

from ecoserve.serving.simulate.gpu.hardware import find_gpu, gpu_names
from ecoserve.serving.simulate.gpu.host import HostTimes
from ecoserve.serving.simulate.gpu.links import Link
from ecoserve.serving.simulate.gpu.model import GpuModel, gpu_model
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
