"""The benchmark of the divergences at tiny size: every method of ours gives the gradient, and each case prints."""

from __future__ import annotations

from functools import partial

import pytest

from benchmarks.divergence import chosen, measure
from benchmarks.divergence_methods import FLOORS, Case, Problem, floor, floor_fresh
from benchmarks.gpu import divergence as gpu


def test_floors_make_the_same_products_and_the_exact_methods_the_same_gradient():
    case = Case("tiny", 12, 8, 16, 90, objective="reverse_kl", kept=0.5)
    problem = Problem.of(case)
    for ours, fresh in zip(floor(problem), floor_fresh(problem), strict=True):
        assert (ours - fresh).norm() <= 1e-5 * fresh.norm()
    assert floor(problem)[0].data_ptr() == problem.buffers[2].data_ptr()
    able = {name: way for name, way in chosen("own").items() if "eager" in name or name in ("floor", "naive")}
    rows = {row["method"]: row for row in measure(case, able, rounds=1)}
    assert rows["floor"]["processor"] == rows["floor"]["wall"] == 1
    assert all(row["error"] < 1e-5 and row["memory"] > 0 for name, row in rows.items() if name not in FLOORS)


def test_a_method_that_does_not_exist_is_named():
    with pytest.raises(SystemExit, match="fastest"):
        chosen("ours,fastest")


def test_the_gpu_table_runs_on_a_cpu(capsys, monkeypatch):
    monkeypatch.setattr(gpu, "peers", dict)
    monkeypatch.setattr(gpu, "ours", partial(gpu.ours, compiled=False))
    sizes = {"tokens": "9", "student": "8", "teacher": "8", "vocabulary": "70"}
    gpu.main({"device": "cpu", "chunks": "4,8", "columns": "67,70", "rounds": "1", "check": "false"} | sizes)
    printed = capsys.readouterr().out
    assert printed.count("ours, chunk 4, 67 ids") == 2 and "gpu, reverse KL, bf16" in printed
