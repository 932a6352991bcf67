"""List the heavy modules that a stage's processes import, except Ray and verl, which import quickly after these."""

from __future__ import annotations

MODULES = (
    "torch",
    "torch.distributed.fsdp",
    "torch.distributed.checkpoint",
    "torch.utils.tensorboard",
    "tensordict",
    "torchdata.stateful_dataloader",
    "transformers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.qwen3.modeling_qwen3",
    "datasets",
    "pandas",
    "pyarrow.parquet",
    "accelerate",
    "peft",
    "hydra",
    "codetiming",
    "uvicorn",
    "aiohttp",
    "zmq",
    "vllm.v1.engine.core",
    "vllm.v1.engine.async_llm",
    "vllm.v1.worker.cpu_worker",
    "vllm.entrypoints.openai.api_server",
    "vllm.model_executor.models.qwen3",
)
