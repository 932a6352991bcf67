"""Sizes of a served teacher on its GPUs, and the keys that a misfit names."""

from __future__ import annotations

import pytest

from verl_s2d.recipe.servers import Servers
from verl_s2d.sizing.served import servers_problem
from verl_s2d.sizing.shapes import PUBLISHED

GIB = 2**30
LLAMA = PUBLISHED["meta-llama/Llama-3.3-70B-Instruct"]


@pytest.mark.parametrize(
    ("keys", "gpu", "word"),
    [
        ({"tensor_model_parallel_size": 2}, 80, "tensor_model_parallel_size"),
        ({"tensor_model_parallel_size": 4}, 80, None),
        ({"tensor_model_parallel_size": 4, "gpu_memory_utilization": 0.85}, 80, None),
        # 70e9 x 2 / 4 = 35 GB a GPU; 8 x 16384 x 128256 bytes of logits are 15.7 GiB, and 8 are left.
        (
            {
                "tensor_model_parallel_size": 4,
                "gpu_memory_utilization": 0.9,
                "max_num_batched_tokens": 16384,
            },
            80,
            "max_num_batched_tokens",
        ),
    ],
)
def test_a_model_fits_its_servers_or_the_key_is_named(keys, gpu, word):
    found = servers_problem(Servers(**keys), LLAMA, role="teacher", longest=4096, dtype_bytes=2, gpu_bytes=gpu * GIB)
    assert found is None if word is None else f"stages.opd.servers.teacher.{word}" in found, found
