"""Make prompts without labels: a model proposes questions with hints, and hint-delta chooses among them (G-Zero).

    python -m verl_s2d.stages.g_zero.propose model=MODEL out=DIR max_tokens=N proposals=N prompts=["...", ...]
        pattern=REGEX hint_prompt=TEXT proposal_tokens=N prompt_tokens=N percentiles=[0,50]
        question_characters=[20,2000] hint_characters=[5,400] least=N known=["FILE", ...] [template=boxed|dapo|none]
        [temperature=1] [top_p=1] [top_k=-1] [seed=0] [tensor_parallel_size=1] [trust_remote_code=false] [replicas=1]
        [device=auto] [engine.<name>=<value> ...] [weights=DIGEST] [chat_template.<name>=<value> ...]
        [columns.<name>=<column> ...]

No answer is read and no verifier is called. max_tokens is the longest answer. Writes prompts.parquet, in verl's columns
without answers; proposals.parquet with every scored question, its hint, the answer's token ids, d, and whether it was
kept; and, last, g_zero.json with the numbers of proposals and why others were dropped. The same command resumes.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from verl_s2d import arguments
from verl_s2d.data import templates
from verl_s2d.data.files import write_json, write_parquet
from verl_s2d.data.formats.column_names import columns_of
from verl_s2d.data.problems import Problem, read_problems
from verl_s2d.data.unlabelled import pool_problem, pool_table
from verl_s2d.errors import UserError
from verl_s2d.platforms.environment import prepare_for_vllm
from verl_s2d.sampling import PARTS
from verl_s2d.sampling.complete import complete
from verl_s2d.sampling.engine import on_cpu
from verl_s2d.sampling.prompts import load_tokenizer, render_prompt
from verl_s2d.sampling.request import Settings
from verl_s2d.sampling.sampling_options import SamplingOptions
from verl_s2d.sampling.shards import PROMPT_LOG_PROBS
from verl_s2d.stages.g_zero.hint_delta import hint_delta, within_percentiles
from verl_s2d.stages.g_zero.proposals import Form, Proposal, distinct, parsed

SOURCE = "g_zero"
"""Data source of the prompts."""
_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class Options(SamplingOptions):
    """Command line of this module; the keys are those of recipe/self_proposals.py."""

    proposals: int
    prompts: list[str]
    pattern: str
    hint_prompt: str
    proposal_tokens: int
    prompt_tokens: int
    """Longest prompt, with or without the hint, with the chat template."""
    percentiles: list[float]
    question_characters: list[int]
    hint_characters: list[int]
    least: int
    """Fewest prompts that are of use."""
    known: list[str] = field(default_factory=list)
    """Files of problems that are not to be proposed again."""
    columns: dict[str, str] = field(default_factory=dict)
    """Names of the columns in those files that have them."""
    template: str | None = None


def main(options: Options) -> None:
    """Sample, score and write. Raises UserError for unusable input, or fewer prompts than are of use."""
    prepare_for_vllm()
    on_cpu(options.device)
    maker, dropped = _Maker(options), Counter()
    texts = maker.propose()
    form = Form(options.pattern, tuple(options.question_characters), tuple(options.hint_characters))
    known = [_question(problem) for problem in _known(options)]
    proposals = distinct(parsed(texts, form, dropped), known, dropped)
    proposals = maker.fitting(proposals, dropped)
    answers = maker.answer(proposals) if proposals else []
    answered = [pair for pair in zip(proposals, answers, strict=True) if pair[1]]
    dropped["unanswered"] += len(proposals) - len(answered)
    proposals, answers = [p for p, _ in answered], [a for _, a in answered]
    deltas = maker.deltas(proposals, answers) if proposals else []
    kept = within_percentiles(deltas, *options.percentiles)
    dropped["percentile"] += len(proposals) - int(kept.sum())
    counts = {"proposals": len(texts), "prompts": int(kept.sum()), "dropped": dict(dropped)}
    if counts["prompts"] < options.least:
        raise UserError(
            f"Of {len(texts)} proposals {counts['prompts']} are left (dropped: {_words(dropped)}), and a batch of "
            f"stage 2b has {options.least}.",
            key="stages.g_zero.proposals",
            value=options.proposals,
            remedy="Ask for more, or look at stages.g_zero.prompts and .pattern: does the student write that form?",
        )
    out = Path(options.out)
    rows = {
        "question": [p.question for p in proposals],
        "hint": [p.hint for p in proposals],
        "answer_ids": pa.array(answers, pa.list_(pa.int32())),
        "delta": pa.array(deltas, pa.float64()),
        "kept": pa.array(kept.tolist(), pa.bool_()),
    }
    write_parquet(pa.table(rows), out / "proposals.parquet")
    asked = [maker.messages(p) for p, keep in zip(proposals, kept, strict=True) if keep]
    write_parquet(pool_table([pool_problem(messages, SOURCE) for messages in asked]), out / "prompts.parquet")
    write_json(counts | {"sampled_tokens": maker.sampled_tokens}, out / "g_zero.json")
    print(f"g-zero: {counts['prompts']} of {len(texts)} proposals are kept; dropped: {_words(dropped)}", flush=True)


class _Maker:
    """The model, asked three times: for proposals, for answers, and for log-probs of the answers."""

    def __init__(self, options: Options):
        self._options, self.sampled_tokens = options, 0
        self._tokenizer = load_tokenizer(options.model, trust_remote_code=options.trust_remote_code)

    def propose(self) -> list[str]:
        """Sample the proposals' texts."""
        o = self._options
        share = -(-o.proposals // len(o.prompts))
        prompts = [self._render(text) for text in dict.fromkeys(o.prompts)]
        settings = Settings(share, o.temperature, o.top_p, o.top_k, o.proposal_tokens, o.seed)
        ids = self._sample("proposals", prompts, settings)["response_ids"]
        return self._tokenizer.batch_decode(ids.to_pylist(), skip_special_tokens=True)[: o.proposals]

    def fitting(self, proposals: Sequence[Proposal], dropped: Counter[str]) -> list[Proposal]:
        """Keep proposals whose prompts are short enough, with and without the hint."""
        most = self._options.prompt_tokens
        kept = [p for p in proposals if max(len(self._asked(p)), len(self._hinted(p))) <= most]
        dropped["overlong"] += len(proposals) - len(kept)
        return kept

    def answer(self, proposals: Sequence[Proposal]) -> list[list[int]]:
        """Sample an answer to each question without its hint; returns the token ids."""
        # Scoring takes one token more than the answer.
        o, most = self._options, max(1, self._options.max_tokens - 1)
        settings = Settings(1, o.temperature, o.top_p, o.top_k, most, o.seed)
        return self._sample("answers", [self._asked(p) for p in proposals], settings)["response_ids"].to_pylist()

    def deltas(self, proposals: Sequence[Proposal], answers: Sequence[Sequence[int]]) -> list[float]:
        """Compute hint-delta of each proposal, from the log-probs of its answer after both prompts."""
        asked = [[*self._asked(p), *answer] for p, answer in zip(proposals, answers, strict=True)]
        hinted = [[*self._hinted(p), *answer] for p, answer in zip(proposals, answers, strict=True)]
        settings = Settings(1, 0.0, 1.0, -1, 1, self._options.seed, prompt_log_probs=True)
        scored = self._sample("scores", [*asked, *hinted], settings)[PROMPT_LOG_PROBS].to_pylist()
        pairs = zip(scored[: len(asked)], scored[len(asked) :], answers, strict=True)
        return [hint_delta(without[-len(a) :], with_hint[-len(a) :]) for without, with_hint, a in pairs]

    def messages(self, proposal: Proposal) -> list[dict[str, str]]:
        """Make the messages of a question, as stages 2a and 2b read it."""
        return [{"role": "user", "content": templates.ask(proposal.question, self._options.template)}]

    def _sample(self, name: str, prompts: Sequence[Sequence[int]], settings: Settings) -> pa.Table:
        directory = Path(self._options.out) / PARTS / name
        request = self._options.request(prompts, settings, files={})
        parts = complete(request, directory, name=name, replicas=self._options.replicas)
        table = pa.concat_tables(parts.tables(_AT_ONCE))
        # An engine on a CPU works in this process: its memory is free before the next one is loaded.
        gc.collect()
        if not settings.prompt_log_probs:
            self.sampled_tokens += sum(map(len, table["response_ids"].to_pylist()))
        return table

    def _asked(self, proposal: Proposal) -> list[int]:
        return self._render(self.messages(proposal)[0]["content"])

    def _hinted(self, proposal: Proposal) -> list[int]:
        question = self.messages(proposal)[0]["content"]
        return self._render(self._options.hint_prompt.format(question=question, hint=proposal.hint))

    def _render(self, text: str) -> list[int]:
        return render_prompt(self._tokenizer, [{"role": "user", "content": text}], self._options.chat_template)


def _known(options: Options) -> list[Problem]:
    columns = columns_of(options.columns)
    files = (read_problems(file, key="known", columns=columns, own_columns=True) for file in options.known)
    return [problem for problems in files for problem in problems]


def _question(problem: Problem) -> str:
    return templates.strip(problem.messages[-1]["content"])[0]


def _words(dropped: Counter[str]) -> str:
    return ", ".join(f"{count} {why}" for why, count in dropped.items() if count) or "none"


if __name__ == "__main__":
    arguments.run(main, Options)
