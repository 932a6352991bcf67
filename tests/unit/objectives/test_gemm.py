"""Products and buffers of each device; CUDA's views and operands run on a CPU, with products that round as its do."""

from __future__ import annotations

import pytest
import torch

from tests.support.divergence_reference import cast, definition, gradients, linear, materialised
from verl_s2d.objectives import buffers, chunked_pass, gemm
from verl_s2d.objectives.divergence import divergence


@pytest.fixture
def tensor_cores(monkeypatch):
    """CUDA's products of low-precision operands on a CPU, with its rows; returns the operands' row lengths by call."""
    mm, seen = torch.mm, []

    def low(a, b, out_dtype):
        assert a.dtype == b.dtype == torch.bfloat16 and out_dtype == torch.float32
        seen.append({t.stride(d) for t in (a, b) for d in range(2)} - {1})
        return mm(a.float(), b.float())

    def fake_mm(a, b, *, out_dtype=None, out=None):
        if out_dtype is None:
            return mm(a, b) if out is None else mm(a, b, out=out)
        return low(a, b, out_dtype) if out is None else out.copy_(low(a, b, out_dtype))

    def fake_addmm(total, a, b, *, out_dtype, beta, out):
        assert out is total
        product = low(a, b, out_dtype)
        return out.copy_(product) if beta == 0 else out.add_(product)

    monkeypatch.setattr(torch, "mm", fake_mm)
    monkeypatch.setattr(torch, "addmm", fake_addmm)
    monkeypatch.setattr(gemm, "takes_low_precision", lambda head, dtype: head.dtype != dtype)
    monkeypatch.setattr(chunked_pass, "empty_rows", _rows_as_on_cuda)
    return seen


def _rows_as_on_cuda(*shape, dtype, device):
    padded = -(-shape[-1] // buffers._CUDA_ROW) * buffers._CUDA_ROW
    return torch.full((*shape[:-1], padded), torch.nan, dtype=dtype)[..., : shape[-1]]


@pytest.mark.parametrize("objective", ["forward_kl", "reverse_kl", "jsd"])
def test_low_precision_products_are_made_of_one_rounded_gradient_in_aligned_rows(tensor_cores, objective):
    student, teacher = cast(linear(21, 333, 32, 0), torch.bfloat16), cast(linear(21, 401, 32, 2), torch.bfloat16)
    weights = torch.linspace(0.5, 2, 21)
    result = divergence(student, teacher, objective=objective, weights=weights, chunk_tokens=8, vocab_size=331)
    exact = cast(student, torch.float64)
    expected = definition(materialised(exact, 331), materialised(teacher, 331), objective)
    torch.testing.assert_close(result.divergence.double(), expected, rtol=1e-4, atol=1e-4)
    wanted = gradients((expected * weights).sum(), exact)
    found = torch.autograd.grad((result.divergence * weights).sum(), [student.hidden, student.head])
    for ours, reference in zip(found, wanted, strict=True):
        assert (ours.double() - reference).norm() / reference.norm() < 5e-3
    # Of three chunks: two logits, the hidden states' gradient and the head's, which is one product for all ids.
    assert len(tensor_cores) == 3 * 4
    assert {768, 32} in tensor_cores and not any(331 in lengths for lengths in tensor_cores)


def test_rows_on_cuda_begin_at_multiples_of_64_elements():
    assert buffers.empty_rows(2, 3, 151_669, dtype=torch.float32, device=torch.device("cpu")).shape == (2, 3, 151_669)
    meta = torch.empty(0, device="meta").device
    assert buffers.empty(5, 7, dtype=torch.bfloat16, device=meta).shape == (5, 7)
    block = _rows_as_on_cuda(2, 3, 130, dtype=torch.float32, device=None)[1]
    narrow = buffers.reinterpret_rows(block, torch.bfloat16)
    assert narrow.shape == (3, 130) and narrow.stride() == (2 * 192, 1)
    assert narrow.data_ptr() == block.data_ptr()


@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_of_either_library_are_exact_in_float32(monkeypatch, onednn, dtype):
    if onednn and not torch.backends.mkldnn.is_available():
        pytest.skip("torch without oneDNN")
    monkeypatch.setattr(gemm, "_onednn_is_faster", lambda: onednn)
    monkeypatch.setattr(gemm, "_ONEDNN_FROM", 0)
    monkeypatch.setattr(gemm, "_BLOCK", 100)
    made = []
    linear_product = gemm._linear
    monkeypatch.setattr(gemm, "_linear", lambda *both: made.append(1) or linear_product(*both))
    generator = torch.Generator().manual_seed(0)
    hidden, head = (torch.randn(rows, 24, generator=generator).to(dtype) for rows in (7, 333))
    out = torch.empty(7, 340)[:, :333]
    gemm.logits_of(hidden, head, out)
    logits = hidden.double() @ head.double().T
    torch.testing.assert_close(out.double(), logits, rtol=1e-5, atol=1e-5)
    by_hidden = gemm.hidden_gradient(out, head, torch.float32)
    torch.testing.assert_close(by_hidden.double(), logits @ head.double(), rtol=1e-5, atol=1e-3)
    assert bool(made) == onednn
    assert gemm.operand(out, head, out) is out


def test_huge_pages_are_asked_for_inside_the_tensor_only(monkeypatch):
    asked = []
    monkeypatch.setattr(buffers, "_madvise", lambda: lambda *arguments: asked.append(arguments))
    buffers._advise(4096, (2 << 21) + 5000)
    buffers._advise(4096, 1 << 21)
    buffers._advise(0, 0)
    assert asked == [(1 << 21, 1 << 21, 14)]
    tensor = buffers.empty(3 << 20, dtype=torch.float32, device=torch.device("cpu"))
    begin, length, _ = asked[-1]
    assert tensor.data_ptr() <= begin and begin + length <= tensor.data_ptr() + tensor.nbytes
    assert begin % (1 << 21) == 0 and length >= 4 << 20
