"""The golden files hold what the workflow starts on a CUDA machine, and nothing of the machine that wrote them."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest

from tests.cuda_double.golden import GOLDEN, RECIPES, ROOT, texts
from tests.cuda_double.recorded import cuda_machine
from verl_s2d.platforms.device import resolve_device

FILES = ["machine.txt", *(f"{path.stem}.txt" for path in RECIPES)]


@pytest.fixture(scope="module")
def found():
    return texts()


@pytest.mark.parametrize("name", FILES)
def test_what_is_started_is_as_in_the_golden_file(found, name):
    assert found[name] == (GOLDEN / name).read_text(), "meant? then `python -m tests.cuda_double`, and read the diff"


def test_there_is_no_other_golden_file():
    assert sorted(path.name for path in GOLDEN.iterdir()) == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
def test_no_path_of_a_machine_is_in_a_golden_file(name):
    text = (GOLDEN / name).read_text()
    for path in (ROOT, Path.home(), tempfile.gettempdir(), sys.prefix):
        assert str(path) not in text


def test_a_recipe_that_leaves_the_device_open_gets_cuda():
    with cuda_machine():
        assert resolve_device("auto") == "cuda"
