# Sourced by the other scripts: creates .venv, and updates it when the dependencies change.
# Usage: . scripts/setup.sh

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

vtok_find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python3.12 python3.11 python3.13 python3.10; do
        if [ -n "$candidate" ] && command -v "$candidate" >/dev/null &&
            "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: no Python 3.10 to 3.13 found; set PYTHON to its path" >&2
    return 1
}

vtok_setup() {
    local wanted stamp=.venv/.vtok-setup python pip
    wanted=$(cat pyproject.toml constraints.txt | cksum)
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && .venv/bin/python -c 'import vtok' 2>/dev/null; then
        return
    fi
    python=$(vtok_find_python) || return 1
    echo "setting up .venv (takes a few minutes, only once)" >&2
    [ -x .venv/bin/python ] || "$python" -m venv .venv || return 1
    pip=".venv/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt"
    # torch first, with its exact version: otherwise pip may download gigabytes of GPU libraries
    $pip "$(grep '^torch==' constraints.txt)" && $pip -e '.[dev]' || return 1
    echo "$wanted" >"$stamp"
}

vtok_setup || exit 1
