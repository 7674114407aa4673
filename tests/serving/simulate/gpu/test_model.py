"""A step's time: its parts, and how it grows with work, contexts and GPUs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple

import pytest

from ecoserve.errors import ConfigError
from ecoserve.serving.simulate.cost import StepWork
from ecoserve.serving.simulate.gpu.hardware import GPUS, Link, find_gpu, find_link
from ecoserve.serving.simulate.gpu.model import GpuModel, HostTimes, gpu_model

Machine = Callable[..., GpuModel]


def decodes(requests: int, context: int, longest: int | None = None) -> StepWork:
    total = requests * context
    return StepWork(0, requests, total, [], total, longest or context)


def prompt(new: int, context: int = 0) -> StepWork:
    return StepWork(new, 0, new + context, [(new, context)])


def mixed(new: int, requests: int, context: int) -> StepWork:
    return StepWork(new, requests, new + requests * context, [(new, 0)], requests * context, context)


@pytest.mark.parametrize("gpu", ["h100_sxm", "rtx_pro_6000_server"])
def test_more_work_takes_longer(machine: Machine, gpu: str) -> None:
    m = machine(gpu)
    by_batch = [m.seconds(decodes(n, 1000)) for n in (1, 8, 32, 64, 128, 256)]
    by_context = [m.seconds(decodes(64, c)) for c in (100, 500, 1000, 2000, 4000, 8000, 16000)]
    by_prompt = [m.seconds(prompt(n)) for n in (128, 512, 1024, 2048, 4096, 8192)]
    by_before = [m.seconds(prompt(512, c)) for c in (0, 1000, 4000, 16000, 64000)]
    by_both = [m.seconds(mixed(1024, n, 1000)) for n in (1, 16, 64, 128, 256)]
    for series in (by_batch, by_context, by_prompt, by_before, by_both):
        assert series == sorted(series)
        assert series[-1] > 1.2 * series[0]


def test_more_gpus_take_less_and_faster_ones_too(machine: Machine) -> None:
    for work in (decodes(64, 2000), prompt(2048)):
        one, two = machine(tp=1).seconds(work), machine(tp=2).seconds(work)
        assert one / 2 < two < one
    assert machine("h100_sxm").seconds(decodes(64, 2000)) < machine("rtx_pro_6000_server").seconds(decodes(64, 2000))


def test_parts_add_up_and_each_belongs_to_its_work(machine: Machine) -> None:
    m = machine()
    parts = m.parts(decodes(64, 1000))
    assert parts.total == pytest.approx(sum(astuple(parts)))
    assert m.seconds(decodes(64, 1000)) == parts.total
    assert parts.experts == parts.links == 0.0
    assert parts.gap == pytest.approx(m.host.gap_s + 64 * m.host.gap_request_s)
    assert machine(tp=2).parts(decodes(64, 1000)).links > 0
    experts = machine("rtx_pro_6000_server", "qwen3-30b-a3b")
    assert experts.parts(decodes(64, 1000)).experts > experts.parts(decodes(1, 1000)).experts > 0


def test_decodes_alone_cost_the_captured_graph_of_the_next_size(machine: Machine) -> None:
    m = machine()
    assert [m.run_tokens(decodes(n, 10)) for n in (1, 3, 9, 250, 257, 512, 513)] == [1, 4, 16, 256, 272, 512, 513]
    assert m.run_tokens(mixed(5, 9, 10)) == 14
    assert m.parts(decodes(17, 1000)).tokens == m.parts(decodes(24, 1000)).tokens


def test_a_long_decode_is_waited_for_where_nothing_is_split(machine: Machine) -> None:
    flash2 = machine("rtx_pro_6000_server")
    assert flash2.seconds(decodes(128, 800, longest=6000)) > 1.02 * flash2.seconds(decodes(128, 800))
    flash3 = machine("h100_sxm")
    assert flash3.seconds(decodes(128, 800, longest=6000)) == flash3.seconds(decodes(128, 800))


def test_a_prompt_beyond_the_grid_costs_its_pieces(machine: Machine) -> None:
    m = machine()
    whole = m.attention.prefill_ms([(65536, 0)])
    assert whole == pytest.approx(m.attention.prefill_ms([(32768, 0)]) + m.attention.prefill_ms([(32768, 32768)]))


def test_a_stated_link_decides_what_gpus_send_each_other(machine: Machine) -> None:
    m = machine(tp=2)
    link = Link(latency_s=20e-6, bandwidth=16e9)
    linked = gpu_model("h100_sxm", m.shape, 2, link=link)
    # Two sums of 64 tokens x 4,096 x 2 bytes a layer, and one more; half of the logits from the other.
    sums = 65 * (20e-6 + 64 * 4096 * 2 / 16e9)
    logits = 20e-6 + 64 * 128256 * 2 / 2 / 16e9
    assert linked.parts(decodes(64, 1000)).links == pytest.approx(sums + logits)
    assert linked.parts(decodes(64, 1000)).tokens == m.parts(decodes(64, 1000)).tokens
    with pytest.raises(ConfigError, match="bandwidth above 0"):
        Link(1e-6, 0)


@pytest.mark.parametrize(
    ("gpu", "name", "direct", "bandwidth"),
    [
        ("rtx_pro_6000_server", None, False, 16e9),
        ("rtx_pro_6000_server", "pcie", None, None),
        ("rtx_4090", None, False, 16e9),
        ("l40s", None, None, None),
        ("h100_sxm", None, None, None),
        ("h100_sxm", "pcie", True, 0.57 * 64e9),
        ("a100_pcie", None, True, 0.57 * 32e9),
        ("a100_pcie", "35:12.5", False, 12.5e9),
    ],
)
def test_a_link_is_the_gpus_or_named(gpu: str, name: str | None, direct: bool | None, bandwidth: float | None) -> None:
    found = find_link(find_gpu(gpu), name)
    assert (found and found.direct, found and found.bandwidth) == (direct, bandwidth)


def test_an_all_reduce_is_one_exchange_or_nccls_ring() -> None:
    """By NCCL's estimates for PCIe, in microseconds: LL 6.6 + 1.0 a step, Simple 8.4 + 5.7 a step."""
    direct, host = Link(5e-6, 36e9, direct=True), Link(19.8e-6, 16e9)
    assert direct.all_reduce_s(1e6, 2) == pytest.approx(5e-6 + 1e6 / 36e9)
    assert direct.all_reduce_s(1e6, 4) == pytest.approx(8.4e-6 + 6 * 5.7e-6 + 1.5e6 / 36e9)
    assert host.all_reduce_s(1e6, 2) == pytest.approx(8.4e-6 + 2 * 5.7e-6 + 1e6 / 16e9)
    assert host.all_reduce_s(1e4, 2) == pytest.approx(6.6e-6 + 2 * 1.0e-6 + 1e4 / 4e9)
    for name, gpu in (("fast", "a100_sxm"), ("1:2:3", "a100_sxm"), ("nvlink", "l40s"), ("5:0", "l40s")):
        with pytest.raises(ConfigError, match="link") as raised:
            find_link(find_gpu(gpu), name)
        assert raised.value.exit_code == 2


def test_a_gpu_without_measurements_goes_by_its_peaks(machine: Machine) -> None:
    l40s, rtx, bandwidth, flops = machine("l40s"), machine("rtx_4090"), 864 / 1008, 362.05 / 165.2
    # A decode reads weights and KV; a prompt is matrix work.
    assert rtx.seconds(decodes(1, 1000)) / l40s.seconds(decodes(1, 1000)) == pytest.approx(bandwidth, rel=0.01)
    assert rtx.seconds(prompt(8192)) / l40s.seconds(prompt(8192)) == pytest.approx(flops, rel=0.02)


def test_host_times_grow_with_the_batch_and_the_launch_is_a_part(machine: Machine) -> None:
    m = machine()
    assert m.host_s(decodes(128, 10)) > m.host_s(decodes(1, 10)) > m.launch_s(decodes(1, 10)) > 0
    free = gpu_model("h100_sxm", m.shape, host=HostTimes(gap_s=0, gap_request_s=0))
    assert free.parts(decodes(8, 10)).gap == 0


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("H100", "h100_sxm"),
        ("NVIDIA A100-SXM4-80GB", "a100_sxm"),
        ("RTXPRO6000", "rtx_pro_6000_server"),
        ("RTX PRO 6000", "rtx_pro_6000_server"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx_pro_6000_server"),
        ("NVIDIA H100 80GB HBM3", "h100_sxm"),
        ("NVIDIA H200", "h200_sxm"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA B200", "b200_sxm"),
        ("b200_sxm", "b200_sxm"),
        ("H100_SXM5_80GB", "h100_sxm"),
        ("H200-141GB", "h200_sxm"),
        ("H100 PCIe", "h100_pcie"),
        ("NVIDIA GeForce RTX 4090", "rtx_4090"),
        ("RTX PRO 6000 Blackwell Workstation Edition", "rtx_pro_6000_workstation"),
    ],
)
def test_gpus_by_their_usual_names(name: str, found: str) -> None:
    assert find_gpu(name).name == found


def test_an_unknown_gpu_is_one_line() -> None:
    for name in ("h1000", "NVIDIA A100-SXM4-40GB", "A100 PCIe 40GB", "RTX 4090 Ti", "tpu"):
        with pytest.raises(ConfigError, match=f"one of {', '.join(GPUS)}") as raised:
            find_gpu(name)
        assert raised.value.exit_code == 2
        assert "\n" not in str(raised.value)
