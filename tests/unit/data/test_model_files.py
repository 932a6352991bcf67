"""Vocabularies with holes or beyond the embedding, and files that disagree about the end of a sequence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, models

from verl_s2d.data.model_files import end_warnings, read_model, vocabulary_warnings
from verl_s2d.errors import UserError


def facts(directory: Path, ids: dict[str, int], rows: int, *, added=(), eos=1, generation=None, tokenizer_eos=None):
    directory.mkdir(exist_ok=True)
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<pad>"))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in added])
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "config.json").write_text(json.dumps({"vocab_size": rows, "eos_token_id": eos}))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": tokenizer_eos}))
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    return read_model(directory, "student")


WORDS = {"<pad>": 0, "<eos>": 1, "a": 2, "b": 3}


@pytest.mark.parametrize("rows", [4, 5, 64])
def test_an_embedding_that_covers_the_ids_or_is_padded(rows, tmp_path):
    assert vocabulary_warnings(facts(tmp_path, WORDS, rows)) == []


def test_ordinary_tokens_beyond_the_embedding_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"3 rows.*up to 3"):
        vocabulary_warnings(facts(tmp_path, WORDS, 3))


def test_added_tokens_beyond_the_embedding_are_a_warning(tmp_path):
    (warning,) = vocabulary_warnings(facts(tmp_path, WORDS, 4, added=["<image>"]))
    assert "<image> (4)" in warning
    with pytest.raises(UserError, match="up to 3"):
        vocabulary_warnings(facts(tmp_path, WORDS, 3, added=["<image>"]))


def test_ids_with_holes(tmp_path):
    """verl samples ids below the number of tokens, which is 4 here."""
    holes = {"<pad>": 0, "<eos>": 1, "a": 2, "b": 9}
    (warning,) = vocabulary_warnings(facts(tmp_path, holes, 10))
    assert "b (9)" in warning
    with pytest.raises(UserError, match=r"no response would end \(b \(9\)\)"):
        vocabulary_warnings(facts(tmp_path, holes, 10, eos=9))
    assert len(vocabulary_warnings(facts(tmp_path, holes, 10, eos=[1, 9]))) == 1, "one end is enough"


@pytest.mark.parametrize(
    ("eos", "generation", "tokenizer", "template", "agree"),
    [
        (1, None, "<eos>", None, True),
        (1, [1, 2], "<eos>", "<eos>", True),
        (1, [1, 2], "a", None, False),
        (1, 2, None, None, False),
        # A base model with the chat template of its tuned sister.
        (1, 1, "<eos>", "a", False),
        ([1, 2], [1, 2], "a", "a", True),
        (1, [1, 2], "<eos>", "a", True),
        (1, None, None, None, True),
        (1, None, "gone", None, False),
    ],
)
def test_the_end_of_a_sequence(eos, generation, tokenizer, template, agree, tmp_path):
    model = facts(tmp_path, WORDS, 4, eos=eos, generation=generation, tokenizer_eos=tokenizer)
    warnings = end_warnings(model, template)
    assert (warnings == []) == agree
    for source in (*model.ends, *(["chat template"] if template else [])) if not agree else ():
        assert source in warnings[0]
