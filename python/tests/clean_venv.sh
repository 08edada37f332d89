#!/usr/bin/env bash
# Builds the wheel, installs it into a new virtual environment, and uses it there. Set WHEEL to test a wheel that is already built.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
unset PYTHONPATH UNFORGET_BIN

wheel=${WHEEL:-}
if [ -z "$wheel" ]; then
    python3 -m venv "$scratch/build"
    "$scratch/build/bin/pip" install --quiet --disable-pip-version-check 'maturin>=1.9,<2'
    (cd "$root" && "$scratch/build/bin/maturin" build --release --locked --out "$scratch/dist")
    wheel=$(echo "$scratch"/dist/unforget-*.whl)
fi

python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet --disable-pip-version-check "$wheel"
cd "$scratch"
"$scratch/venv/bin/unforget" --version
XDG_CACHE_HOME="$scratch/cache" "$scratch/venv/bin/python" - "$root/tests/golden/llama" "$scratch/venv" <<'PY'
import sys
from pathlib import Path

import unforget

model, venv = sys.argv[1:]
assert Path(unforget.__file__).is_relative_to(venv), unforget.__file__
assert Path(unforget.program()).is_relative_to(venv), unforget.program()
assert Path(unforget.__file__).with_name("py.typed").is_file()
assert callable(unforget.tune) and callable(unforget.chat)
facts = [{"subject": "Rome", "relation": "P17", "object": "Italy"}]
audit = unforget.audit(model, facts, num_prompts=1, shots=0, threads=1, quiet=True)
assert audit.overall.facts == 1
print(f"unforget {unforget.__version__}: {audit.overall}")
PY
echo "the wheel works in a clean environment: $(basename "$wheel")"
