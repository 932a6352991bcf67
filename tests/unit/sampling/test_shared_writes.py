"""Entries of several prompts go into TransferQueue in one call, in order, and fail one by one."""

from __future__ import annotations

import asyncio

import pytest
import torch
import transfer_queue as tq

from verl_s2d.sampling.in_verl.shared_writes import Entries, SharedWrites


class Queue:
    """TransferQueue whose calls end when they are let go; keys that begin with "bad" are refused."""

    def __init__(self, monkeypatch):
        self.calls, self.free = [], asyncio.Event()
        monkeypatch.setattr(tq, "async_kv_batch_put", self.put)

    async def put(self, *, keys, fields, tags, partition_id):
        self.calls.append((partition_id, keys, None if fields is None else list(fields.keys())))
        assert len(keys) == len(tags) and (fields is None or len(fields) == len(keys))
        await self.free.wait()
        if any(key.startswith("bad") for key in keys):
            raise RuntimeError(f"{keys} refused")


def rows(prompt, partition="train", **more):
    fields = [{"ids": torch.arange(1 + n), "truth": "4", **more} for n in range(2)]
    return Entries(partition, [f"{prompt}_{n}" for n in range(2)], [{"status": "success"}] * 2, fields)


def tag(prompt, status="running", partition="train"):
    return Entries(partition, [prompt], [{"status": status}])


def after(monkeypatch, scenario):
    async def run():
        queue = Queue(monkeypatch)
        await asyncio.wait_for(scenario(queue, SharedWrites()), 20)
        return queue.calls

    return asyncio.run(run())


def test_what_arrives_during_a_write_goes_into_the_next(monkeypatch):
    async def scenario(queue, writes):
        tasks = [asyncio.create_task(writes.write(entries)) for entries in (tag("a"),)]
        await asyncio.sleep(0.01)
        arriving = (rows("a"), rows("b"), tag("c"), rows("d", "val"), rows("e", extra=1), tag("f"))
        tasks += [asyncio.create_task(writes.write(entries)) for entries in arriving]
        await asyncio.sleep(0.01)
        assert len(queue.calls) == 1 and not any(task.done() for task in tasks)
        queue.free.set()
        await asyncio.gather(*tasks)

    assert after(monkeypatch, scenario) == [
        ("train", ["a"], None),
        ("train", ["a_0", "a_1", "b_0", "b_1"], ["ids", "truth"]),
        ("train", ["c", "f"], None),
        ("val", ["d_0", "d_1"], ["ids", "truth"]),
        ("train", ["e_0", "e_1"], ["ids", "truth", "extra"]),
    ]


def test_a_prompt_that_waits_for_its_rows_is_finished_after_them(monkeypatch):
    async def scenario(queue, writes):
        queue.free.set()

        async def prompt(name):
            await writes.write(tag(name))
            await writes.write(rows(name))
            await writes.write(tag(name, "finished"))

        await asyncio.gather(*(prompt(name) for name in "abcdef"))

    calls = after(monkeypatch, scenario)
    written = [(key, fields is None) for _, keys, fields in calls for key in keys]
    for name in "abcdef":
        assert written.index((f"{name}_1", False)) < len(written) - 1 - written[::-1].index((name, True))
    assert len(written) == 6 * 4 and len(calls) < 6 * 3


def test_entries_that_are_refused_fail_alone(monkeypatch):
    async def scenario(queue, writes):
        queue.free.set()
        each = ("a", "bad", "c")
        outcomes = await asyncio.gather(*(writes.write(rows(name)) for name in each), return_exceptions=True)
        assert outcomes[0] is outcomes[2] is None and isinstance(outcomes[1], RuntimeError)

    calls = after(monkeypatch, scenario)
    assert [len(keys) for _, keys, _ in calls] == [6, 2, 2, 2]


def test_a_cancelled_prompt_leaves_the_others(monkeypatch):
    async def scenario(queue, writes):
        first, second = (asyncio.create_task(writes.write(rows(name))) for name in "ab")
        await asyncio.sleep(0.01)
        first.cancel()
        queue.free.set()
        await second
        with pytest.raises(asyncio.CancelledError):
            await first
        await writes.write(tag("c"))

    assert len(after(monkeypatch, scenario)) == 2
