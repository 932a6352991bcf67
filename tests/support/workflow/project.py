"""A recipe whose stages are real processes, but tiny ones: `stage.py` plays verl and the project's modules."""

from __future__ import annotations

import functools
import json
import struct
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tests.support.paths import ROOT
from tests.support.workflow.stage import play
from verl_s2d import arguments
from verl_s2d.data import slices
from verl_s2d.workflow.hosts.process import SubprocessLauncher

STAGE = Path(__file__).with_name("stage.py")
REAL = ("verl_s2d.data.slices", "verl_s2d.stages.prepare.limit_prompts")
"""Modules that run as they are."""
NO_STAGES = {"verl_s2d.workflow.hosts.cluster_ready": 0, "verl_s2d.workflow.watch.ray_deaths": 1}
"""Modules that ask Ray, with their exit codes here: the cluster is ready, and cannot be asked about deaths."""


class FakeStages(SubprocessLauncher):
    """Starts `python -m MODULE arguments` as `python stage.py MODULE arguments`; scripts run as they are."""

    def __init__(self):
        self.started: list[list[str]] = []

    def start(self, argv, env, cwd, log):
        argv = list(argv)
        if argv[2] in NO_STAGES:
            return Ended(NO_STAGES[argv[2]])
        if argv[1] == "-m" and argv[2] not in REAL:
            self.started.append(argv[2:])
            argv = [sys.executable, str(STAGE), *argv[2:]]
        else:
            self.started.append(argv[1:])
        return super().start(argv, env, cwd, log)


class Ended:
    """Handle of a process that has ended already."""

    pid = 0

    def __init__(self, code: int):
        self._code = code

    def poll(self):
        return self._code

    def terminate(self):
        return None

    kill = terminate


class SimulatedStages:
    """A launcher that does a stage's work in this process, before `start` returns: no processes, so hundreds of stages
    take seconds. Stages that hang or outlive a kill need FakeStages."""

    def __init__(self):
        self.started: list[str] = []
        """Directory names of the stages, in the order in which they were started."""

    def start(self, argv, env, cwd, log):
        if argv[2] in NO_STAGES:
            return Ended(NO_STAGES[argv[2]])
        self.started.append(Path(cwd).name)
        module, rest = argv[2], argv[3:]
        with log.open("a") as stream:
            try:
                if module == "verl_s2d.data.slices":
                    slices.write_slices(arguments.parse(rest, slices.Options))
                else:
                    say = functools.partial(print, file=stream)
                    play(module, rest, Path(cwd), env, say, functools.partial(self.called, Path(cwd)))
            except SystemExit as end:
                return Ended(end.code)
        return Ended(0)

    def called(self, stage: Path, problem: str) -> None:
        """The verifier was called on a problem, and that has been entered in the stage's ledger."""

    def close(self):
        return None


def write_problems(path: Path, ids, *, prefix: str = "problem") -> Path:
    """Problems in verl's columns; the prompt of problem i is `prefix i`."""
    rows = [
        {
            "prompt": [{"role": "user", "content": f"{prefix} {i}"}],
            "data_source": "test",
            "reward_model": {"style": "rule", "ground_truth": str(i)},
            "extra_info": {"index": f"{prefix}-{i}", "answer": str(i)},
        }
        for i in ids
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_safetensors(path: Path, tensors: dict[str, bytes]) -> Path:
    header, offset = {}, 0
    for name, data in tensors.items():
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(tensors.values()))
    return path


WORDS = ["<pad>", "<eos>", "a", "b", "c"]
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if enable_thinking %}{% endif %}"


def write_model(
    directory: Path,
    *,
    words=WORDS,
    vocabulary: int | None = None,
    context: int = 64,
    eos: int = 1,
    weight: bytes = b"w",
    template: str | None = TEMPLATE,
) -> Path:
    """A model directory as far as anything without torch can see."""
    from tokenizers import Tokenizer, models

    directory.mkdir(parents=True, exist_ok=True)
    config = {"vocab_size": vocabulary or len(words), "max_position_embeddings": context, "eos_token_id": eos}
    (directory / "config.json").write_text(json.dumps(config))
    Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>")).save(
        str(directory / "tokenizer.json")
    )
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    write_safetensors(directory / "model.safetensors", {"weight": weight * 8})
    return directory


def write_chat_model(directory: Path, template: str, **rest) -> Path:
    """A model whose tokenizer splits at white space: a token for each word of the problems and two that mark turns."""
    from tokenizers import AddedToken, Tokenizer, pre_tokenizers

    words = ["<pad>", "<eos>", "problem", "held", *map(str, range(20))]
    write_model(directory, words=words, vocabulary=32, template=template, **rest)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in ("<user>", "<end>")])
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


FIXED_MICRO_BATCHES = {
    "actor_rollout_ref.actor.use_dynamic_bsz": False,
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 2,
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": 8,
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": 8,
}
"""Keys of stages 1, 2b and 3 for micro-batches of so many sequences."""


def settings(**changes) -> dict:
    """A valid recipe as a mapping; changes are dotted keys with __ for dots, None removes."""
    verl = {
        "data.train_batch_size": 4,
        "actor_rollout_ref.actor.ppo_mini_batch_size": 4,
        "actor_rollout_ref.rollout.n": 2,
    }
    recipe = {
        "name": "tiny",
        "student": "student",
        "teacher": "teacher",
        "sft_teacher": "sft",
        "data": {
            "train": "train.parquet",
            "eval": {"held": "held.parquet"},
            "labels": 16,
            "prompt_tokens": 8,
            "response_tokens": 4,
        },
        "verifier": "verifier.py:score",
        "rows": ["cold-student", "half-split"],
        "evaluation": {"samples": 2},
        "stages": {
            "teacher_rl": {"steps": 4, "save_every": 2, "verl": dict(verl)},
            "rollouts": {"per_prompt": 2},
            "warmup": {"steps": 4, "save_every": 2, "verl": {"data.train_batch_size": 4}},
            "opd": {"steps": 4, "save_every": 2, "verl": dict(verl)},
            "student_rl": {"steps": 4, "save_every": 2, "verl": dict(verl)},
        },
        "cluster": {"device": "cpu", "stall_minutes": 1.0},
    }
    for key, value in changes.items():
        *parents, last = key.split("__")
        place = recipe
        for name in parents:
            place = place.setdefault(name, {})
        if value is None:
            place.pop(last, None)
        else:
            place[last] = value
    return recipe


def write_project(directory: Path, **changes) -> Path:
    """Models, data, verifier and recipe in a directory; returns the recipe."""
    write_model(directory / "student")
    write_model(directory / "teacher", weight=b"t")
    write_model(directory / "sft", weight=b"f")
    write_problems(directory / "train.parquet", range(20))
    write_problems(directory / "held.parquet", range(5), prefix="held")
    (directory / "verifier.py").write_text("def score(*args, **kwargs):\n    return 1.0\n")
    recipe = directory / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(settings(**changes)))
    return recipe


def write_scripts(directory: Path) -> None:
    """pretrain.py and tasks.py of a recipe that makes its own models and data."""
    root = str(ROOT)
    head = f"import sys\nfrom pathlib import Path\nsys.path.insert(0, {root!r})\n"
    head += "from tests.support.workflow.project import write_model, write_problems\nout = Path(sys.argv[2])\n"
    head += "args = dict(a.split('=', 1) for a in sys.argv[3:])\n"
    (directory / "pretrain.py").write_text(head + "write_model(out, weight=args['size'][:1].encode())\n")
    (directory / "tasks.py").write_text(
        head
        + "write_problems(out / 'train.parquet', range(20))\n"
        + "write_problems(out / 'held.parquet', range(int(args.get('held', 3))), prefix=args.get('prefix', 'held'))\n"
    )
