"""Write to TransferQueue what several prompts have ready at the same time in one call."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import transfer_queue as tq
from verl.utils.tensordict_utils import list_of_dict_to_tensordict


@dataclass(frozen=True)
class Entries:
    """Keys with their tags, and their fields or none."""

    partition: str
    keys: Sequence[str]
    tags: Sequence[dict[str, Any]]
    fields: Sequence[dict[str, Any]] = ()

    @property
    def kind(self) -> tuple[str, ...]:
        """Return what entries of one call have in common: the partition, and the fields' names in their order."""
        return (self.partition, *(self.fields[0] if self.fields else ()))


class SharedWrites:
    """Collects what arrives while a write is on its way; the next write takes all of it.

    A call has four round trips whatever it carries, so that many small ones keep the queue's processes busy.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[Entries, asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None

    async def write(self, entries: Entries) -> None:
        """Return once the entries are in TransferQueue.

        Raises:
            Exception: what TransferQueue raises for these entries; those of others are written without them.
        """
        written = asyncio.get_running_loop().create_future()
        self._waiting.append((entries, written))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_waiting())
        await written

    async def _write_waiting(self) -> None:
        while self._waiting:
            of_kind: dict[tuple[str, ...], list[tuple[Entries, asyncio.Future[None]]]] = {}
            for each in self._waiting:
                of_kind.setdefault(each[0].kind, []).append(each)
            self._waiting = []
            for together in of_kind.values():
                await self._write_together(together)

    async def _write_together(self, together: Sequence[tuple[Entries, asyncio.Future[None]]]) -> None:
        try:
            await _put([entries for entries, _ in together])
        except Exception as error:
            if len(together) > 1:
                for alone in together:
                    await self._write_together([alone])
                return
            if not together[0][1].done():
                together[0][1].set_exception(error)
        for _, written in together:
            # A prompt that was cancelled waits no longer.
            if not written.done():
                written.set_result(None)


async def _put(together: Sequence[Entries]) -> None:
    fields = [field for entries in together for field in entries.fields]
    await tq.async_kv_batch_put(
        keys=[key for entries in together for key in entries.keys],
        fields=list_of_dict_to_tensordict(fields) if fields else None,
        tags=[tag for entries in together for tag in entries.tags],
        partition_id=together[0].partition,
    )
