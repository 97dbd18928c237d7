# Sourced by the other scripts: makes .venv once, and again when the pins change.
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
    echo "error: Python 3.10 to 3.13 is needed; set PYTHON to one" >&2
    return 1
}

vtok_setup() {
    local wanted stamp=.venv/.vtok-setup python
    wanted=$(cat pyproject.toml constraints.txt | cksum)
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && .venv/bin/python -c 'import vtok' 2>/dev/null; then
        return
    fi
    python=$(vtok_find_python) || return 1
    echo "setting up .venv (a few minutes, once)" >&2
    [ -x .venv/bin/python ] || "$python" -m venv .venv || return 1
    # torch first and alone: without a version pip would fetch gigabytes of GPU libraries
    .venv/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt "$(grep '^torch==' constraints.txt)" &&
        .venv/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]' || return 1
    echo "$wanted" >"$stamp"
}

vtok_setup || exit 1
