"""Sets made here: every layout that is read, duplicates, the hub, and one clear error for each kind of bad input."""

from __future__ import annotations

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from verl_s2d import cli
from verl_s2d.data import templates
from verl_s2d.data.duplicates import deduplicate
from verl_s2d.data.prepare import Options, prepare
from verl_s2d.data.problems import read_problems
from verl_s2d.data.slices import Options as Slices
from verl_s2d.data.slices import write_slices
from verl_s2d.data.sources import SOURCES, Record, load
from verl_s2d.errors import UserError


def row(number: int, **changes) -> dict:
    """A row of DAPO-Math-17k: `text`, `answer` and `id` are those of problem `number` unless given."""
    text = changes.get("text", f"What is {number} plus one?")
    return {
        "prompt": [{"role": "user", "content": templates.TEMPLATES["dapo"].apply(text)}],
        "reward_model": {"style": "rule", "ground_truth": changes.get("answer", str(number + 1))},
        "extra_info": {"index": changes.get("id", f"p{number}")},
    }


def published(number: int, **changes) -> dict:
    """A row as the hub has AIME."""
    return {"id": number, "problem": f"Solve the case of {number}.", "answer": f"{number:03d}"} | changes


def write(path, rows, schema=None):
    pq.write_table(pa.Table.from_pylist(rows, schema), path)
    return str(path)


@pytest.fixture
def sources(tmp_path) -> dict[str, str]:
    return {
        "dapo-math-17k": write(tmp_path / "train.parquet", [row(i) for i in range(6)]),
        "aime24": write(tmp_path / "aime.parquet", [published(i) for i in range(3)]),
    }


def prepare_these(tmp_path, sources, **changes) -> dict:
    return prepare(Options(out=str(tmp_path / "out"), eval="aime24", sources=sources, **changes))


def test_layouts(tmp_path):
    math = {"problem": "Find $x$.", "answer": r"\frac{1}{2}", "level": 3, "subject": "Algebra"}
    path = write(tmp_path / "m.parquet", [math | {"unique_id": "test/algebra/7.json"}])
    (record,) = load(SOURCES["math500"], path).records
    assert record == Record("test/algebra/7.json", "Find $x$.", r"\frac{1}{2}", 3, "Algebra")
    path = write(tmp_path / "a.parquet", [published(7)])
    assert load(SOURCES["aime24"], path).records == [Record("aime24-7", "Solve the case of 7.", "7")]
    path = write(tmp_path / "d.parquet", [row(7), row(7), {**row(8), "prompt": None} | {"prompt": row(8)["prompt"]}])
    assert load(SOURCES["dapo-math-17k"], path).records == [
        Record("p7", "What is 7 plus one?", "8", copies=2),
        Record("p8", "What is 8 plus one?", "9"),
    ]
    bare = [{"prompt": "One?", "answer": "1", "id": "x"}, {"prompt": "Two?", "answer": "2", "id": "y"}]
    assert load(SOURCES["aime25"], write(tmp_path / "b.parquet", bare)).templates == {"none": 2}


def test_the_hub(tmp_path, sources, monkeypatch):
    asked = []

    def load_dataset(name, *, split, revision):
        asked.append((name, split, revision))
        return datasets.Dataset.from_list([published(i) for i in range(3)])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    del sources["aime24"]
    manifest = prepare_these(tmp_path, sources)
    assert asked == [("HuggingFaceH4/aime_2024", "train", None)]
    assert manifest["sets"]["aime24"]["source"] == {"hub": asked[0][0], "split": "train", "revision": None}
    loaded = load(SOURCES["aime24"], "someone/aime@v2")
    assert asked[1] == ("someone/aime", "train", "v2") and loaded.identity["revision"] == "v2"
    assert [r.id for r in loaded.records] == ["aime24-0", "aime24-1", "aime24-2"]

    commit = "0123456789abcdef0123456789abcdef01234567"
    load_dataset("", split="", revision="").save_to_disk(tmp_path / commit)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.load_from_disk(tmp_path / commit))
    assert load(SOURCES["aime24"]).identity["revision"] == commit

    def unreachable(*_, **__):
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match="no route to the hub") as caught:
        load(SOURCES["aime24"])
    assert caught.value.key == "sources.aime24" and "local parquet" in caught.value.remedy


def records(*rows: tuple[str, str, str, int]) -> list[Record]:
    return [Record(i, text, answer, copies=copies) for i, text, answer, copies in rows]


def test_duplicates_are_counted_by_kind():
    kept, counted = deduplicate(
        records(
            ("b", "Find $x$.", "1", 100),
            ("a", r"Find \(x\)", "1", 100),
            ("c", "Find $y$.", "2", 100),
        ),
        "set",
    )
    assert [r.id for r in kept] == ["a", "c"], "the smallest id stays, at the place of the first"
    assert (counted.rows, counted.identical, counted.same_text, counted.unresolved) == (300, 297, 1, 0)


def test_the_answer_most_copies_give_wins_and_a_tie_is_left_out():
    kept, counted = deduplicate(records(("a", "x", "1", 1), ("b", "x", "2", 1), ("c", "x.", "2", 1)), "set")
    assert [(r.id, r.answer) for r in kept] == [("b", "2")]
    assert (counted.same_text, counted.unresolved) == (2, 0)
    (contradiction,) = counted.contradictions
    assert (contradiction.ids, contradiction.answers, contradiction.kept) == (["a", "b", "c"], ["1", "2"], "b")
    kept, counted = deduplicate(records(("a", "x", "1", 3), ("b", "x", "2", 3), ("c", "y", "5", 1)), "set")
    assert [r.id for r in kept] == ["c"] and counted.unresolved == 2 and counted.contradictions[0].kept is None


def test_the_choice_does_not_depend_on_the_order_of_the_file(tmp_path, sources):
    rows = [row(i) for i in range(40)] + [row(i, id=f"q{i}", text=f"what is ${i}$ plus one") for i in range(40)]
    halves = []
    for number, order in enumerate((rows, rows[::-1], rows * 3)):
        changed = sources | {"dapo-math-17k": write(tmp_path / f"{number}.parquet", order)}
        out = tmp_path / str(number)
        halves.append(prepare(Options(out=str(out), eval="aime24", sources=changed))["halves"])
        assert sorted(p.id for p in read_problems(out / "train.parquet")) == sorted(f"p{i}" for i in range(40))
    assert halves[0] == halves[1] == halves[2]


TRAIN, EVAL = "dapo-math-17k", "aime24"


@pytest.mark.parametrize(
    ("name", "rows", "key", "said"),
    [
        (TRAIN, [{"prompt": "x"}], "sources.dapo-math-17k", "lacks answer .* id "),
        (TRAIN, [row(0) | {"prompt": [1]}], "sources.dapo-math-17k: prompt", "no chat messages"),
        (TRAIN, [row(0) | {"prompt": row(0)["prompt"] * 2}], "sources.dapo-math-17k: prompt", "more than one message"),
        (TRAIN, [row(0), row(1) | {"prompt": []}], "sources.dapo-math-17k: prompt", "more than one message"),
        (TRAIN, [row(0, text=" "), row(1)], "dapo-math-17k: text", "1 rows .* have no problem"),
        (TRAIN, [row(0, text=None) | {"prompt": None}, row(1)], "dapo-math-17k: text", "have no problem"),
        (TRAIN, [row(0), row(1, answer="one half")], "dapo-math-17k: answer", "is no integer.*What is 1 plus"),
        (TRAIN, [row(0), row(1, answer=None)], "dapo-math-17k: answer", "is no integer"),
        (TRAIN, [row(0), row(1, id=None)], "dapo-math-17k: id", "have no id"),
        (TRAIN, [row(0), row(1, id="p0")], "dapo-math-17k: id", "more than one problem"),
        (TRAIN, [row(0), row(0, id="other", text="What is 0 plus one")], "train: dapo-math-17k", "half"),
        (TRAIN, [row(0)], "train: dapo-math-17k", "half of the training problems would be empty"),
        (EVAL, [published(0, answer=0.5)], "sources.aime24: answer", "type double"),
        (EVAL, [], "sources.aime24", "no rows"),
        (EVAL, [published(0), published(1, problem="Solve the case of 0!", answer="1")], None, None),
        (EVAL, [published(0), published(1, problem="Solve the case of 0", answer="1")], "eval: aime24", "empty"),
    ],
)
def test_unusable_sets(tmp_path, sources, name, rows, key, said):
    schema = None if rows else pa.Table.from_pylist([published(0)]).schema
    changed = sources | {name: write(tmp_path / "bad.parquet", rows, schema)}
    if key is None:
        assert prepare_these(tmp_path, changed)["sets"][name]["problems"] == 2, "0! is another problem than 0"
        return
    with pytest.raises(UserError, match=said) as caught:
        prepare_these(tmp_path, changed)
    assert caught.value.key == key and caught.value.remedy
    assert not (tmp_path / "out").exists(), "nothing is written before everything is checked"


def test_unreadable_files(tmp_path, sources):
    whole = (tmp_path / "train.parquet").read_bytes()
    (tmp_path / "text.parquet").write_text("no parquet")
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "garbled.parquet").write_bytes(whole[:100] + bytes(200) + whole[300:])
    for name in ("absent.parquet", "text.parquet", "cut.parquet", "garbled.parquet", "."):
        with pytest.raises(UserError, match="cannot be read") as caught:
            prepare_these(tmp_path, sources | {TRAIN: str(tmp_path / name)})
        assert caught.value.key == "sources.dapo-math-17k"


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"train": "dapo"}, "train"),
        ({"eval": ""}, "eval"),
        ({"eval": "aime24,aime24"}, "eval"),
        ({"train": "aime24"}, "eval"),
        ({"template": "plain"}, "template"),
        ({"contamination": "ignore"}, "contamination"),
        ({"ngram": 1}, "ngram"),
        ({"overlap": 0.0}, "overlap"),
        ({"sources": {"gsm8k": "x"}}, "sources"),
        ({"sources": {"math500": "x"}}, "sources.math500"),
    ],
)
def test_impossible_settings(tmp_path, changes, key):
    with pytest.raises(UserError) as caught:
        prepare(Options(**{"out": str(tmp_path / "out"), "eval": "aime24"} | changes))
    assert caught.value.key == key and caught.value.remedy


def test_the_command(tmp_path, sources, capsys):
    out = tmp_path / "out"
    command = ["prepare", str(out), "eval=aime24", *(f"sources.{n}={path}" for n, path in sources.items())]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[1].split() == ["dapo-math-17k", "6", "0", "0", "0", "0", "6"] and "1H 3, 2H 3" in said
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    assert cli.main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((out / "prepared.json").read_text())
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before, "again, to the byte"
    assert cli.main([*command, "templet=dapo"]) == 2
    assert "Did you mean template?" in capsys.readouterr().err
    assert cli.main([*command, "template=dapo"]) == 2
    assert "prepared differently" in capsys.readouterr().err


def test_remove(tmp_path, sources):
    copies = [published(1), published(2, problem="What is  4 plus one?", answer="5")]
    sources["aime24"] = write(tmp_path / "copies.parquet", copies)
    reported = prepare_these(tmp_path, sources)
    with pytest.raises(UserError, match="1 evaluation problems are among"):
        train, held_out = (str(tmp_path / "out" / f"{name}.parquet") for name in ("train", "aime24"))
        write_slices(Slices(train, str(tmp_path / "slices"), eval={"a": held_out}))
    out = tmp_path / "removed"
    removed = prepare(Options(out=str(out), eval="aime24", sources=sources, contamination="remove"))
    assert [o["train_id"] for o in removed["overlaps"]] == ["p4"] and removed["overlaps"] == reported["overlaps"]
    assert [p.id for p in read_problems(out / "train.parquet")] == ["p0", "p1", "p2", "p3", "p5"]
    with pytest.raises(UserError, match="half"):
        only = write(tmp_path / "only.parquet", [row(4), row(5)])
        prepare(Options(str(tmp_path / "x"), eval="aime24", sources=sources | {TRAIN: only}, contamination="remove"))


def test_other_data_in_the_directory_stay(tmp_path, sources):
    first = prepare_these(tmp_path, sources)
    before = (tmp_path / "out/train.parquet").read_bytes()
    for change in ({"template": "dapo"}, {"seed": 1}, {"thinking": True}):
        with pytest.raises(UserError, match="prepared differently"):
            prepare_these(tmp_path, sources, **change)
    assert (tmp_path / "out/train.parquet").read_bytes() == before
    assert prepare_these(tmp_path, sources) == first
    # A run that was killed has no manifest yet, and is simply done again.
    (tmp_path / "out/prepared.json").unlink()
    assert prepare_these(tmp_path, sources, template="dapo")["settings"]["template"] == "dapo"
