#!/bin/bash
# Measures the engine on a GPU, beside PyTorch where it is installed, and draws a table. About eight minutes on a card.
#
#   benches/gpu/run.sh [--small] [OUT]     --small: tiny shapes, for software devices
#
# PEAK=67 (TFLOP/s of f32) adds the share of the card's peak. DEVICE=1 takes the second GPU.
set -euo pipefail
cd "$(dirname "$0")/../.."

small=()
if [ "${1:-}" = --small ]; then
    small=(--small)
    shift
fi
out=${1:-target/gpu}
mkdir -p "$out"
out=$(cd "$out" && pwd)
# shellcheck disable=SC2086
${CARGO:-cargo} bench --locked --features gpu --bench gpu -- --device "${DEVICE:-0}" "${small[@]}" --json "$out/unforget.json"
files=("$out/unforget.json")
python=${PYTHON:-python3}
if "$python" -c 'import torch' 2>/dev/null; then
    "$python" benches/gpu/torch_gpu.py "${small[@]}" >"$out/torch.json"
    files+=("$out/torch.json")
else
    echo "PyTorch is not installed: only unforget is measured" >&2
fi
"$python" benches/gpu/table.py "${files[@]}" ${PEAK:+--peak "$PEAK"} | tee "$out/table.md"
