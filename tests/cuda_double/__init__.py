"""Golden files of the command and environment that each stage gets on a CUDA machine, made on a machine that has none.

The workflow runs every full recipe with a launcher that records instead of starting. A process whose torch reports GPUs
is asked what verl and our sampler make of the recorded environment. Both are compared with golden files:

    python -m tests.cuda_double      # write them anew
"""
