"""Send the requests that a prompt's rollouts make at the same time to one server in one call."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from verl.workers.rollout.llm_server import LLMServerClient
from verl.workers.rollout.replica import TokenOutput


class GroupClient:
    """Stands in for verl's client while `size` agent loops of one prompt ask for their answer.

    All go to the server that verl's balancer names for the first, which so computes the prompt once.

    Args:
        client: verl's.
        size: number of loops, each of which asks once.
    """

    def __init__(self, client: LLMServerClient, size: int):
        self._client, self._size = client, size
        self._requests: list[dict[str, Any]] = []
        self._answers: asyncio.Future[Sequence[TokenOutput]] = asyncio.get_running_loop().create_future()

    async def generate(
        self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any], **more: Any
    ) -> TokenOutput:
        """Answer as verl's client does, once all loops have asked.

        Raises:
            RuntimeError: more loops ask than were announced.
        """
        place = len(self._requests)
        if place == self._size:
            raise RuntimeError(f"the {self._size} rollouts of a prompt ask the server once each, and one asks again")
        self._requests.append(
            {
                "request_id": self._client._vllm_request_id(request_id),
                "prompt_ids": prompt_ids,
                "sampling_params": sampling_params,
                # Of a text prompt verl's loop passes the arguments for images empty.
                **{name: value for name, value in more.items() if value},
            }
        )
        if place + 1 == self._size:
            try:
                self._answers.set_result(await self._ask(request_id))
            except BaseException as error:
                self._answers.set_exception(error)
        output = (await self._answers)[place]
        version = output.extra_fields.get("global_steps")
        output.extra_fields.setdefault("min_global_steps", version)
        output.extra_fields.setdefault("max_global_steps", version)
        return output

    async def _ask(self, request_id: str) -> Sequence[TokenOutput]:
        address, server = await self._client._acquire_server(request_id, prompt_ids=self._requests[0]["prompt_ids"])
        try:
            return await server.generate_group.remote(self._requests)
        finally:
            self._client._release_server(address, request_id=request_id)
