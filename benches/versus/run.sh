#!/usr/bin/env bash
# Ours and PyTorch's, one after the other on an otherwise idle machine; one JSON line for each measurement.
# usage: run.sh HF_DIR FACTS.tsv    PYTHON: a Python with torch and transformers. UNFORGET: the program.
# RUNS (1), SAMPLES (16): the audit's; its time is proportional to RUNS + RUNS x SAMPLES on PyTorch's side, to RUNS on ours.
# CHAT_TOKENS (1024): those of a long row, two of which make a step. AUDIT: empty leaves the audits out, of a model of random weights.
# STEPS (10), FACTS (1000): steps that are timed, facts that an evaluation asks.
# AUDIT_FACTS (250): facts that PyTorch audits; ours always audits 1,000.
set -euo pipefail
model=${1:?usage: run.sh HF_DIR FACTS.tsv} facts=${2:?usage: run.sh HF_DIR FACTS.tsv}
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3} threads=${THREADS:-2}

ours() { "$python" "$here/unforget_steps.py" "$model" "$facts" "$@" --threads "$threads"; }
theirs() { "$python" "$here/torch_steps.py" "$model" "$facts" "$@" --threads "$threads" 2>/dev/null; }
big_pages() { # the allocator keeps its memory and takes it in huge pages
    local tunables=glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=17179869184:glibc.malloc.trim_threshold=17179869184
    GLIBC_TUNABLES=$tunables "$@"
}

audit=(--runs "${RUNS:-1}" --samples "${SAMPLES:-16}")
short=(--steps "${STEPS:-10}" --facts "${FACTS:-1000}")
for what in load load load load load sft self-distill evaluate; do # a machine gives memory more slowly the first time
    ours "$what" "${short[@]}"
    big_pages theirs "$what" "${short[@]}" --variant best
    theirs "$what" "${short[@]}" --variant usual
done
for teacher in live topk; do
    ours self-distill "${short[@]}" --teacher "$teacher"
done
ours sft "${short[@]}" --thrifty
ours self-distill "${short[@]}" --thrifty
chats=(--chat-tokens "${CHAT_TOKENS:-1024}" --batch-size 2 --steps 4)
for what in sft self-distill; do
    ours "$what" "${chats[@]}"
    big_pages theirs "$what" "${chats[@]}" --variant best
    theirs "$what" "${chats[@]}" --variant usual
done
[ -n "${AUDIT-yes}" ] || exit 0
# PyTorch's audits take long, and their time is proportional to the number of facts: each line says how many it had.
ours audit "${audit[@]}"
big_pages theirs audit --variant best "${audit[@]}" --facts "${AUDIT_FACTS:-250}"
theirs audit --variant usual "${audit[@]}" --facts 50
