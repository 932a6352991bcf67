"""The exact divergence on a GPU beside the bare products and Liger-Kernel, by chunk and by number of real ids.

    python -m benchmarks.gpu.divergence [device=cuda] [tokens=8192] [student=2048] [teacher=4096] [vocabulary=151936]
        [chunks=512,1024,2048] [columns=151669,151680,151936] [rounds=7] [check=false]

bf16, both KLs. Columns are the real ids of a vocabulary: 151,669 is Qwen3's, an odd number; rows of logits are padded
to a multiple of 64 elements on CUDA, so the three should cost the same. Read the wall time. check=true
adds the gradient's error against float64, which takes minutes and tens of GB there. The smallest chunk that is as fast
as the largest is the one to be the default (verl_s2d/objectives/chunk_sizes.py). No result of a GPU is known yet.
"""

from __future__ import annotations

import os
import sys
from functools import partial

import torch

from benchmarks.divergence import measure, table, title
from benchmarks.divergence_methods import Case, floor, floor_fresh, ours
from benchmarks.divergence_peers import peers


def main(given: dict[str, str]) -> None:
    """Measure both KLs and print a table of each as it ends."""
    device, check = given.get("device", "cuda"), given.get("check", "false") == "true"
    sizes = [
        int(given.get(name, default))
        for name, default in (("tokens", 8192), ("student", 2048), ("teacher", 4096), ("vocabulary", 151_936))
    ]
    able = {"floor": floor, "floor-fresh": floor_fresh}
    able |= {name: peer for name, peer in peers().items() if name.startswith("liger")}
    for chunk in given.get("chunks", "512,1024,2048").split(","):
        for columns in given.get("columns", "151669,151680,151936").split(","):
            able[f"ours, chunk {chunk}, {columns} ids"] = partial(
                ours, chunk_tokens=int(chunk), vocab_size=int(columns)
            )
    machine = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} cores"
    print(f"{machine}, torch {torch.__version__}")
    for objective in ("forward_kl", "reverse_kl"):
        case = Case("gpu", *sizes, objective=objective, dtype=torch.bfloat16, device=device)
        print(f"\n{title(case)}\n\n{table(measure(case, able, int(given.get('rounds', 7)), check=check))}", flush=True)


if __name__ == "__main__":
    main(dict(argument.split("=", 1) for argument in sys.argv[1:]))
