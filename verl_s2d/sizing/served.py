"""Check whether a frozen model fits on the GPUs of its servers."""

from __future__ import annotations

from verl_s2d.recipe.servers import Servers
from verl_s2d.sizing.generation import generation
from verl_s2d.sizing.shapes import ModelShape
from verl_s2d.verl_settings.stage_sizes import Rollout

GIB = 2**30


def servers_problem(
    servers: Servers, shape: ModelShape, *, role: str, longest: int, dtype_bytes: int, gpu_bytes: float
) -> str | None:
    """Name what does not fit, and the key to change; None where all does.

    vLLM's share holds weights and cache, as of a rollout engine. Beside it lie the logits of a pass over prompts and
    their log-softmax, 2 x 4 bytes x max_num_batched_tokens x V: a bound, not measured.

    Args:
        longest: tokens of the longest sequence, prompt and response.
        dtype_bytes: bytes of a parameter.
        gpu_bytes: memory of one GPU.
    """
    key = f"stages.opd.servers.{role}"
    engine = Rollout(
        section=key,
        world=servers.gpus,
        tensor=servers.tensor_model_parallel_size,
        pipeline=1,
        utilization=servers.gpu_memory_utilization,
        dtype_bytes=dtype_bytes,
        batched_tokens=servers.max_num_batched_tokens,
        # A request samples one token.
        sequences=1,
        sleeps=False,
        bucket_bytes=0,
    )
    found = generation(engine, shape, longest + 1, gpu_bytes)
    if not found.fits:
        return (
            f"the servers of the {role} have {found.weights / GIB:.1f} GiB of weights on a GPU and leave "
            f"{found.cache / GIB:.1f} GiB of cache, less than one sequence: raise {key}.tensor_model_parallel_size or "
            ".gpu_memory_utilization"
        )
    logits = 8 * servers.max_num_batched_tokens * shape.vocabulary
    if logits > gpu_bytes - found.share:
        return (
            f"the servers of the {role} score {servers.max_num_batched_tokens} tokens at a time, whose logits take "
            f"{logits / GIB:.1f} GiB beside vLLM's share: lower {key}.max_num_batched_tokens or .gpu_memory_utilization"
        )
    return None
