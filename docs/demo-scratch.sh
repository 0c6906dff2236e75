#!/usr/bin/env bash
# `make demo-scratch`: offline. A small vocabulary and a model of a few million parameters from this machine's
# Python source, trained from scratch, then fine-tuned from its own file. Everything it makes is in demo/scratch/.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH" PYTHONUNBUFFERED=1
out=demo/scratch
stdlib=$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
started=$SECONDS

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
run() {
    local shown
    printf -v shown '%q ' "$@"
    printf '$ %s\n' "${shown% }" >&2
    "$@"
}

rm -rf "$out"
mkdir -p "$out"
exclude=(--exclude 'test/*' 'site-packages/*' 'idlelib/*' 'lib2to3/*' 'email/*' 'json/*' 'asyncio/*')

say "1. A vocabulary of 4096 from this machine's Python source"
run apr tokenize train --corpus "$stdlib" --pattern '*.py' "${exclude[@]}" --vocab-size 4096 --output "$out/tokenizer"

say "2. The source to token shards, three packages held out"
run apr tokenize encode --corpus "$stdlib" --pattern '*.py' "${exclude[@]}" \
    --tokenizer "$out/tokenizer" --output "$out/train"
run apr tokenize encode --corpus "$stdlib/asyncio" "$stdlib/email" "$stdlib/json" --pattern '*.py' \
    --tokenizer "$out/tokenizer" --output "$out/held-out"

say "3. From scratch"
data=(--dataset "$out/train" --val-dataset "$out/held-out" --tokenizer "$out/tokenizer"
    --seq-length 128 --batch-size 16 --val-tokens 16384)
run apr pretrain --mode from-scratch --arch qwen2-4m "${data[@]}" --run-dir "$out/first" \
    --num-steps "${DEMO_STEPS:-250}" --lr 2e-3 --force-under-provisioned

say "4. Fine-tuned from its own file"
first=$(ls "$out"/first/ckpt/*.apr | tail -n 1)
run apr pretrain --mode finetune --init "$first" "${data[@]}" --run-dir "$out/run" \
    --num-steps "$(( ${DEMO_STEPS:-250} / 5 ))" --lr 3e-4

say "5. Six promises, decided from what is on disk"
run apr contracts check init-finetune --run-dir "$out/run"

say "What was made (in $((SECONDS - started)) s)"
python docs/demo_table.py "$out" "$(ls "$out"/run/ckpt/*.apr | tail -n 1)"
