"""Store samples so that they outlive a kill: a few prompts a file, each with the identity of its content."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from verl_s2d.data.files import written_whole
from verl_s2d.sampling import likely_tokens
from verl_s2d.sampling.engine import Completion
from verl_s2d.sampling.request import Request

PROMPTS_A_PART = 16
"""What a kill can lose is the parts that are open: few prompts a part make that little, and let several engines end at
about the same time. They cost no throughput, because an engine works on several parts at once (`shard_worker`)."""

_SAMPLES = (("response_ids", pa.list_(pa.int32())), ("finish_reason", pa.string()))

PROMPT_LOG_PROBS = "prompt_log_probs"

Note = Callable[[str], None]


class Part(NamedTuple):
    """Prompts whose samples make one file.

    Attributes:
        samples: of each prompt.
        made_from: what decides its content, as JSON.
    """

    number: int
    prompts: list[list[int]]
    samples: int
    path: str
    made_from: dict[str, Any]


class Parts:
    """The parts of a request, in a directory of their own."""

    def __init__(self, directory: Path, request: Request):
        self.directory, self.request = directory, request
        total, extra = len(request.prompts), request.extra
        self._bounds = [*range(0, extra, PROMPTS_A_PART), *range(extra, total, PROMPTS_A_PART), total]

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, number: int) -> Part:
        first, last = self._bounds[number], self._bounds[number + 1]
        prompts = [list(prompt) for prompt in self.request.prompts[first:last]]
        path, samples = self.directory / f"part-{number:05d}", self.request.samples_of(first)
        return Part(number, prompts, samples, str(path), self.request.identity_of(first, last))

    def read(self, number: int, note: Note) -> pa.Table | None:
        """Rows (response_ids, finish_reason) of a part that is whole, all samples of a prompt together; else None."""
        part = self[number]
        return read_kept(Path(part.path), part.made_from, note)

    def tables(self, prompts: int) -> Iterator[pa.Table]:
        """All samples in the order of their prompts, those of some `prompts` at a time, in whole parts.

        Raises:
            RuntimeError: a part that was whole no longer is.
        """
        together = max(1, prompts // PROMPTS_A_PART)
        for number in range(0, len(self), together):
            found = [self._whole(n) for n in range(number, min(number + together, len(self)))]
            yield pa.concat_tables(found).combine_chunks()

    def completions(self, number: int) -> list[list[Completion]]:
        """List the completions of each prompt of a part. Raises what `tables` raises."""
        n = self[number].samples
        rows = self._whole(number).to_pylist()
        samples = [Completion(row["response_ids"], row["finish_reason"]) for row in rows]
        return [samples[i : i + n] for i in range(0, len(samples), n)]

    def remove(self) -> None:
        """Delete the parts, and what was made of them."""
        shutil.rmtree(self.directory)

    def _whole(self, number: int) -> pa.Table:
        problems: list[str] = []
        table = self.read(number, problems.append)
        if table is None:
            raise RuntimeError(f"{self[number].path} was whole and no longer is: {problems or 'it is gone'}")
        return table


def samples_table(completions: Sequence[Sequence[Completion]]) -> pa.Table:
    """Make the rows (response_ids, finish_reason) of a shard from the completions of each of its prompts.

    Likely tokens, where samples have them, are two more columns (`likely_tokens`), and log-probs of the prompt's tokens
    one.
    """
    samples = [completion for of_prompt in completions for completion in of_prompt]
    columns = {
        "response_ids": [completion.token_ids for completion in samples],
        "finish_reason": [completion.finish_reason for completion in samples],
    }
    if samples and samples[0].prompt_log_probs is not None:
        columns[PROMPT_LOG_PROBS] = [completion.prompt_log_probs for completion in samples]
        return pa.Table.from_pydict(columns, pa.schema([*_SAMPLES, (PROMPT_LOG_PROBS, pa.list_(pa.float32()))]))
    likely = [completion.likely for completion in samples if completion.likely is not None]
    if not likely:
        return pa.Table.from_pydict(columns, pa.schema(_SAMPLES))
    schema = pa.schema([*_SAMPLES, *likely_tokens.fields(likely[0].ids.shape[1])])
    return pa.Table.from_pydict(columns | likely_tokens.columns(likely), schema)


def write_part(part: Part, samples: pa.Table) -> None:
    """Write the file of a shard."""
    write_kept(samples, Path(part.path), part.made_from)


def token_count(table: pa.Table) -> int:
    """Response tokens of all rows."""
    return pc.sum(pc.list_value_length(table["response_ids"])).as_py() or 0


def write_kept(table: pa.Table, path: Path, made_from: Mapping[str, Any]) -> None:
    """A file that `read_kept` takes for the same `made_from` only, and only undamaged: a line with the sha256 of what
    follows, a line with `made_from`, and the table as parquet."""
    content = pa.BufferOutputStream()
    pq.write_table(table, content)
    body = json.dumps(made_from).encode() + b"\n" + content.getvalue().to_pybytes()
    with written_whole(path) as temporary:
        temporary.write_bytes(_seal(body) + b"\n" + body)


def read_kept(path: Path, made_from: Mapping[str, Any], note: Note) -> pa.Table | None:
    """The table of `write_kept`; None where there is none, with a line to `note` if it is of no use."""
    try:
        seal, _, body = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        note(f"{path.name} cannot be read and is made again: {error}")
        return None
    if seal != _seal(body):
        note(f"{path.name} is damaged and is made again")
        return None
    head, _, content = body.partition(b"\n")
    found, wanted = json.loads(head), json.loads(json.dumps(made_from))
    if found != wanted:
        differs = [key for key in wanted if found.get(key) != wanted[key]]
        note(f"{path.name} was made from something else ({', '.join(differs)}) and is made again")
        return None
    return pq.read_table(pa.BufferReader(content))


def _seal(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()
