"""Write the completion of `verl-s2d` for a shell, from the parser of its command line."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator

SHELLS = ("bash", "zsh")

_BASH = """_verl_s2d() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" words
  case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  [ "$COMP_CWORD" -eq 1 ] && words={commands}
  COMPREPLY=($(compgen -W "$words" -- "$word") $([ "$COMP_CWORD" -gt 1 ] && compgen -f -- "$word"))
}}
complete -o filenames -F _verl_s2d verl-s2d
"""
_ZSH = "autoload -U +X bashcompinit && bashcompinit\n"


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return a script to be evaluated by the shell: commands, then the options of each command and files."""
    options = dict(_commands(parser))
    cases = "\n".join(f"    {name}) words={shlex.quote(' '.join(known))} ;;" for name, known in options.items())
    script = _BASH.format(cases=cases, commands=shlex.quote(" ".join(options)))
    return _ZSH + script if shell == "zsh" else script


def _commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, list[str]]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                yield name, sorted(option for own in sub._actions for option in own.option_strings)
