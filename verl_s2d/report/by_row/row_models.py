"""Find the models of rows: links to them in the run directory, and copies elsewhere. All are plain Hugging Face
directories."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from verl_s2d.errors import UserError
from verl_s2d.report.by_row.flow import final_model
from verl_s2d.report.row_results import RowResult
from verl_s2d.stages import stages
from verl_s2d.workflow.store.digests import damage
from verl_s2d.workflow.store.manifest import read_manifest

MODELS = "models"


def model_directory(row: RowResult) -> Path | None:
    """Locate the model that a row evaluates; None for one on the hub, or one that is no longer there."""
    model = final_model(row)
    made = {stage["digest"]: stage for stage in row.stages}.get(model)
    if made is not None:
        stage = stages().get(made["kind"])
        path = stage.model_directory(Path(made["dir"])) if stage else None
    else:
        path = Path(model) if model else None
    return path if path is not None and (path / "config.json").is_file() else None


def link_models(rows: Sequence[RowResult], run_dir: Path) -> dict[str, list[str]]:
    """Link the model of each row as models/<row>, with several seeds as models/<row>-seed-<seed>.

    Links whose models are gone are removed. Nothing else in that directory is touched: a copy of a run may have
    directories in place of links, and some file systems have no links.

    Returns:
        Row name -> links relative to the run directory, where there can be none the model's own directory; without rows
        whose model is on the hub.
    """
    folder, several = run_dir / MODELS, len({row.seed for row in rows}) > 1
    found: dict[str, list[str]] = {}
    for row in rows:
        if (target := model_directory(row)) is None:
            continue
        link = folder / (f"{row.name}-seed-{row.seed}" if several else row.name)
        # A run that is moved keeps its links.
        inside = target.is_relative_to(run_dir)
        try:
            folder.mkdir(exist_ok=True)
            _link(link, Path(os.path.relpath(target, folder)) if inside else target.absolute())
            shown = f"{MODELS}/{link.name}"
        except OSError:
            shown = str(target.relative_to(run_dir) if inside else target.absolute())
        found.setdefault(row.name, []).append(shown)
    for link in folder.iterdir() if folder.is_dir() else ():
        if link.is_symlink() and not link.exists():
            link.unlink()
    return found


def serve_command(path: Path | str) -> str:
    """Write the command that serves a model with vLLM's OpenAI-compatible server."""
    return shlex.join(["vllm", "serve", str(path)])


def export_model(rows: Sequence[RowResult], name: str, out: Path) -> Path:
    """Copy the model of a row, after its files have been compared with their digests.

    Args:
        rows: the finished ones.
        out: a new or empty directory.

    Returns:
        The directory that was copied.

    Raises:
        UserError: no such row, several seeds of it, a model on the hub, a damaged file, or `out` is not empty.
    """
    row = _only(rows, name)
    source = model_directory(row)
    if source is None:
        raise UserError(
            "This row has no model of its own in the run directory.",
            key="row",
            value=name,
            remedy=f"Its model is {final_model(row)}: take it from there.",
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            "The directory is not empty.", key="out", value=str(out), remedy="Give a new or an empty directory."
        )
    manifest = read_manifest(source.parent)
    own = [o for o in manifest["outputs"] if o["name"].startswith(f"{source.name}/")] if manifest else []
    if wrong := damage(source.parent, own):
        raise UserError(
            f"The model is damaged: {wrong[0]}.",
            key="row",
            value=name,
            remedy="`verl-s2d run` sets the stage aside and builds it again when another stage reads it.",
        )
    unfinished = out.with_name(f".{out.name}.unfinished")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, unfinished)
        os.rename(unfinished, out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return source


def _only(rows: Sequence[RowResult], name: str) -> RowResult:
    found = [row for row in rows if row.name == name]
    if not found:
        names = ", ".join(dict.fromkeys(row.name for row in rows)) or "none"
        remedy = f"Finished rows: {names}. `verl-s2d run --rows {name}` builds another one."
        raise UserError("No finished row has this name.", key="row", value=name, remedy=remedy)
    if len(found) > 1:
        seeds = ", ".join(str(row.seed) for row in found)
        raise UserError(
            "The row has a model for each seed.", key="--seed", remedy=f"Choose one of {seeds}: --seed {found[0].seed}."
        )
    return found[0]


def _link(link: Path, target: Path) -> None:
    if link.is_symlink() and link.readlink() == target:
        return
    if link.exists() and not link.is_symlink():
        raise FileExistsError(17, "a file has the name of a link to a model", str(link))
    temporary = link.with_name(f".{link.name}.tmp")
    with suppress(FileNotFoundError):
        temporary.unlink()
    temporary.symlink_to(target)
    os.replace(temporary, link)


def model_words(links: Mapping[str, Sequence[str]], name: str, run_dir: Path) -> list[str]:
    """Tell where the model of a row is and how to serve it; nothing for a row without a link."""
    paths = [_near(run_dir / link) for link in links.get(name, ())]
    if not paths:
        return []
    others = " (one for each seed; other rows beside it)" if len(paths) > 1 else " (other rows beside it)"
    return [f"model of {name}: {paths[0]}{others}", f"serve it: {serve_command(paths[0])}"]


def _near(path: Path) -> Path:
    """Shorten a path below the working directory to a relative one."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
