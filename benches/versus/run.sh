#!/usr/bin/env bash
# Ours and PyTorch's, one after the other on an otherwise idle machine; one JSON line for each measurement.
# usage: run.sh HF_DIR FACTS.tsv    PYTHON: a Python with torch and transformers. OURS: a command that takes the same
# arguments and prints the same lines with "engine": "unforget" (unset: PyTorch alone). AUDIT_FACTS: facts audited (1000).
set -euo pipefail
model=${1:?usage: run.sh HF_DIR FACTS.tsv} facts=${2:?usage: run.sh HF_DIR FACTS.tsv}
here=$(cd "$(dirname "$0")" && pwd)
threads=${THREADS:-2}

ours() { if [ -n "${OURS:-}" ]; then $OURS "$model" "$facts" "$@" --threads "$threads"; fi; }
theirs() { "${PYTHON:-python3}" "$here/torch_steps.py" "$model" "$facts" "$@" --threads "$threads" 2>/dev/null; }
big_pages() { # the allocator keeps its memory and takes it in huge pages
    local tunables=glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=17179869184:glibc.malloc.trim_threshold=17179869184
    GLIBC_TUNABLES=$tunables "$@"
}

for what in sft self-distill; do
    ours "$what"
    big_pages theirs "$what" --variant best
    theirs "$what" --variant usual
done
ours evaluate
big_pages theirs evaluate
audited=(--facts "${AUDIT_FACTS:-1000}" --runs "${RUNS:-20}" --samples "${SAMPLES:-16}")
ours audit "${audited[@]}"
big_pages theirs audit "${audited[@]}"
