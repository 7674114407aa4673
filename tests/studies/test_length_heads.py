"""The heads of benchmarks/studies/length_heads.py: what they say is a distribution, and it is what they were shown."""

from __future__ import annotations

import length_heads as heads
import pytest
import torch

EDGES = torch.tensor([0, 10, 20, 40, 80, 160])


@pytest.mark.parametrize("name", ["Softmax", "Ordinal", "Hazard", "Quantile", "LogNormals"])
def test_a_head_learns_the_distribution_it_is_shown(name: str) -> None:
    torch.manual_seed(0)
    head = getattr(heads, name)(EDGES)
    lengths = torch.tensor([[6.0, 15.0, 33.0, 34.0]]).repeat(16, 1)
    shares = torch.tensor([[0.25, 0.25, 0.5, 0.0, 0.0]]).repeat(16, 1)
    batch = heads.Batch(shares, lengths, torch.full((16,), -1))
    out = torch.zeros(16, head.outputs, requires_grad=True)
    optimizer = torch.optim.Adam([out], lr=0.1)
    for _ in range(400):
        optimizer.zero_grad()
        head.loss(out, batch).backward()
        optimizer.step()
    with torch.no_grad():
        said = head.probabilities(out)
    assert torch.allclose(said.sum(-1), torch.ones(16), atol=1e-3)
    tolerance = 0.12 if name in ("Quantile", "LogNormals") else 0.03
    assert torch.allclose(said, shares, atol=tolerance)


def test_a_cut_off_answer_only_survives() -> None:
    head = heads.Hazard(EDGES)
    batch = heads.Batch(torch.full((1, 5), 0.2), torch.tensor([[30.0]]), torch.tensor([2]))
    out = torch.zeros(1, 4, requires_grad=True)
    head.loss(out, batch).backward()
    assert out.grad is not None
    # Later bins are not spoken of; the two before the cut are made less likely ends.
    assert (out.grad[0, :2] > 0).all()
    assert (out.grad[0, 2:] == 0).all()
