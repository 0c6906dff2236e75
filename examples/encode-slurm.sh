#!/usr/bin/env bash
# Encode a corpus on many machines with a Slurm job array, then join the parts.
#
#     sbatch --array=1-32 --cpus-per-task=8 encode-slurm.sh corpus/ model.apr shards
#     sbatch --dependency=afterok:JOBID encode-slurm.sh corpus/ model.apr shards merge
#
# A task that was killed or ran out of time is started again in the same way, for example with
# `sbatch --array=7`, and continues after its last whole shard; so does the merge. SLURM_ARRAY_TASK_COUNT
# is 1 then: set PARTS to the number of parts of the first submission. All paths are on a shared file system.
set -euo pipefail

corpus=$1 tokenizer=$2 output=$3
: "${PARTS:=${SLURM_ARRAY_TASK_COUNT:-1}}"

written=$output
if [[ ${4:-} != merge ]]; then
    written=$output.part-$SLURM_ARRAY_TASK_ID
fi
resume=()
# What was cut off before its first shard starts over without a flag.
if compgen -G "$written/shard-*.bin" > /dev/null; then
    resume=(--resume)
fi

if [[ ${4:-} == merge ]]; then
    exec apr tokenize merge "$output".part-* --output "$output" "${resume[@]}"
fi
exec apr tokenize encode --corpus "$corpus" --tokenizer "$tokenizer" --output "$written" \
    --part "$SLURM_ARRAY_TASK_ID/$PARTS" --workers "${SLURM_CPUS_PER_TASK:-1}" "${resume[@]}"
