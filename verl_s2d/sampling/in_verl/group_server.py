"""Answer several requests in one call of verl's vLLM server."""

from __future__ import annotations

import asyncio
from typing import Any

import ray
from verl.workers.rollout.replica import TokenOutput
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer, vLLMReplica


class GroupServer(vLLMHttpServer):
    """verl's server, which a prompt's rollouts ask together."""

    async def generate_group(self, requests: list[dict[str, Any]]) -> list[TokenOutput]:
        """Answer every request as `generate` does; each holds the arguments of one call."""
        # verl's server takes settings out of the dict that it is given.
        own = ({**request, "sampling_params": dict(request["sampling_params"])} for request in requests)
        return await asyncio.gather(*(self.generate(**request) for request in own))


class GroupReplica(vLLMReplica):
    """verl's replica with that server."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.server_class = ray.remote(GroupServer)
