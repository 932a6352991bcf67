"""Convert records to rows in verl's columns, and digest the rows.

    data_source  str
    prompt       [{role: user, content: template applied to the problem}]
    ability      "math"
    reward_model {style: rule, ground_truth: str}
    extra_info   {index: problem id, split: train or test, level, subject (null where unknown), thinking: bool}

All sets have the same columns and types, because verl concatenates its data files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import pyarrow as pa

from verl_s2d.data.sources import Record
from verl_s2d.data.templates import Template

SCHEMA = pa.schema(
    {
        "data_source": pa.string(),
        "prompt": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
        "ability": pa.string(),
        "reward_model": pa.struct({"style": pa.string(), "ground_truth": pa.string()}),
        "extra_info": pa.struct(
            {
                "index": pa.string(),
                "split": pa.string(),
                "level": pa.int64(),
                "subject": pa.string(),
                "thinking": pa.bool_(),
            }
        ),
    }
)


def as_table(
    records: Sequence[Record], *, data_source: str, split: str, template: Template, thinking: bool
) -> pa.Table:
    """Build a table with one row per record, in order."""
    rows = [
        {
            "data_source": data_source,
            "prompt": [{"role": "user", "content": template.apply(r.text)}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": r.answer},
            "extra_info": {
                "index": r.id,
                "split": split,
                "level": r.level,
                "subject": r.subject,
                "thinking": thinking,
            },
        }
        for r in records
    ]
    return pa.Table.from_pylist(rows, SCHEMA)


def rows_digest(table: pa.Table) -> str:
    """Compute the sha256 of the rows in order. Unlike the file's, it does not depend on pyarrow's release."""
    digest = hashlib.sha256()
    for row in table.to_pylist():
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
    return digest.hexdigest()
