"""What a plan will need at full size: parallel layouts, memory per GPU, tokens, FLOPs; from settings and shapes alone.

Bytes and FLOPs are closed forms; each module says which and from where. Nothing here needs weights, a GPU or torch.
"""
