#!/usr/bin/env bash
# Run both commands of the README as a newcomer would: in a fresh clone in a temporary folder, with an empty environment, an
# empty home and pip's stock configuration. Prints times and sizes.
#
#   bash tests/fresh.sh                   quickstart, then every change's tests, once with each Python that is found
#   bash tests/fresh.sh --install-only    the environment alone
#   bash tests/fresh.sh --keep DIR        in DIR, which stays
#
# PYTHONS names the interpreters (default: python3.11 python3.12). Packages come from the index that pip asks without a
# configuration. FRESH_PIP_CONFIG=FILE is for a machine without a way to it; the output names the file.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
install_only="" keep=""
while [ $# -gt 0 ]; do
  case "$1" in
    --install-only) install_only=1 ;;
    --keep) keep="${2:?--keep takes a directory}"; shift ;;
    *) sed -n '2,12s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
  esac
  shift
done

place="${keep:-$(mktemp -d)}"
mkdir -p "$place"
[ -n "$keep" ] || trap 'rm -rf "$place"' EXIT
log="$place/fresh.log"

# What a login gives, and nothing else.
clean() { env -i HOME="$home" PATH="$bin:/usr/local/bin:/usr/bin:/bin" LANG=C.UTF-8 TERM=dumb TMPDIR="$home/tmp" "${pip[@]}" "$@"; }
size() { du -sh "$1" 2>/dev/null | cut -f1; }
step() {
  local began=$SECONDS what="$1"
  shift
  if (cd "$clone" && clean "$@") >>"$log" 2>&1; then
    echo "  $what: $((SECONDS - began)) s"
  else
    echo "  $what: FAILED after $((SECONDS - began)) s; the end of the log:"
    tail -n 20 "$log"
    exit 1
  fi
}

pip=(PIP_CONFIG_FILE="${FRESH_PIP_CONFIG:-/dev/null}")
echo "clone of $(git -C "$root" rev-parse --short HEAD); $(getconf _NPROCESSORS_ONLN) cores; pip configuration: ${FRESH_PIP_CONFIG:-stock}"
tested=""
for python in ${PYTHONS:-python3.11 python3.12}; do
  # A version manager's stub stands in PATH even without the version.
  "$python" -c 'import ensurepip, venv' 2>/dev/null || { echo "$python: not found"; continue; }
  tested=1
  clone="$place/$python/verl-s2d" home="$place/$python/home" bin="$place/$python/bin"
  mkdir -p "$home/tmp" "$bin"
  ln -sf "$("$python" -c 'import os, sys; print(os.path.realpath(sys.executable))')" "$bin/python3"
  git clone --quiet --no-hardlinks "$root" "$clone"
  echo "$("$bin/python3" --version)"
  if command -v cc >/dev/null; then echo "  C compiler: yes"; else echo "  C compiler: none"; fi
  step "environment" bash -c '. .ci/environment.sh'
  echo "  .venv: $(size "$clone/.venv")"
  if [ -z "$install_only" ]; then
    step "bash recipes/quickstart/run.sh" bash recipes/quickstart/run.sh
    echo "  run directory: $(size "$clone/runs/quickstart")"
    step "bash tests/run.sh" bash tests/run.sh
  fi
  echo "  left in the home: $(size "$home"); left in its temporary folder: $(find "$home/tmp" -mindepth 1 | wc -l) entries"
  [ -n "$keep" ] || rm -rf "${place:?}/$python"
done
[ -n "$tested" ] || { echo "no Python of: ${PYTHONS:-python3.11 python3.12}" >&2; exit 1; }
