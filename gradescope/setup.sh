#!/usr/bin/env bash
# Gradescope runs this once, as root, when it builds the image: a virtual environment with the pinned
# packages. AUTOGRADER_BASE is for trying it elsewhere.
set -euo pipefail
base="${AUTOGRADER_BASE:-/autograder}"
source="$base/source"

suits() { "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    for name in python3.11 python3.12 python3.13 python3; do
        if command -v "$name" >/dev/null && suits "$name"; then
            echo "$name"
            return
        fi
    done
}

python="$(find_python)"
if [ -z "$python" ]; then
    apt-get update
    apt-get install -y python3-venv
    python="$(find_python)"
fi
if [ -z "$python" ]; then
    apt-get install -y python3.11 python3.11-venv
    python="$(find_python)"
fi

"$python" -m venv "$source/.venv"
"$source/.venv/bin/python" -m pip install --no-cache-dir --disable-pip-version-check --quiet \
    -c "$source/course/constraints.txt" -r "$source/course/requirements.txt"

# Another user runs the students' code: it may read Python and the packages, and nothing else.
chmod -R a+rX "$source/.venv" "$source/course"
chmod 0700 "$source/course/tests"
