#!/usr/bin/env bash
# All measurements, unforget's and PyTorch's in turn, on an otherwise idle machine; one JSON line each.
# usage: run.sh HF_DIR FACTS.tsv    PYTHON: a Python with torch and transformers. UNFORGET: the program.
# NUM_PROMPTS (1), SAMPLES (16): of the audit. Its time is proportional to NUM_PROMPTS x (1 + SAMPLES) for PyTorch, to NUM_PROMPTS for unforget.
# CHAT_TOKENS (1024): tokens of a long row; a step has two. AUDIT: if empty, no audits (for random weights).
# STEPS (10), FACTS (1000): measured steps, facts of an evaluation.
# AUDIT_FACTS (250): facts that PyTorch audits; unforget always audits 1,000.
set -euo pipefail
model=${1:?usage: run.sh HF_DIR FACTS.tsv} facts=${2:?usage: run.sh HF_DIR FACTS.tsv}
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3} threads=${THREADS:-2}

unforget() { "$python" "$here/unforget_steps.py" "$model" "$facts" "$@" --threads "$threads"; }
pytorch() { "$python" "$here/torch_steps.py" "$model" "$facts" "$@" --threads "$threads" 2>/dev/null; }
big_pages() { # the allocator keeps its memory and uses huge pages
    local tunables=glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=17179869184:glibc.malloc.trim_threshold=17179869184
    GLIBC_TUNABLES=$tunables "$@"
}

audit=(--num-prompts "${NUM_PROMPTS:-1}" --samples "${SAMPLES:-16}")
short=(--steps "${STEPS:-10}" --facts "${FACTS:-1000}")
for what in load load load load load sft self-distill evaluate; do # the first load is slower: fresh memory pages
    unforget "$what" "${short[@]}"
    big_pages pytorch "$what" "${short[@]}" --variant best
    pytorch "$what" "${short[@]}" --variant usual
done
for teacher in online topk; do
    unforget self-distill "${short[@]}" --teacher "$teacher"
done
unforget sft "${short[@]}" --low-memory
unforget self-distill "${short[@]}" --low-memory
chats=(--chat-tokens "${CHAT_TOKENS:-1024}" --batch-size 2 --steps 4)
for what in sft self-distill; do
    unforget "$what" "${chats[@]}"
    big_pages pytorch "$what" "${chats[@]}" --variant best
    pytorch "$what" "${chats[@]}" --variant usual
done
[ -n "${AUDIT-yes}" ] || exit 0
# PyTorch's audits are slow and proportional to the number of facts; each line has that number.
unforget audit "${audit[@]}"
big_pages pytorch audit --variant best "${audit[@]}" --facts "${AUDIT_FACTS:-250}"
pytorch audit --variant usual "${audit[@]}" --facts 50
