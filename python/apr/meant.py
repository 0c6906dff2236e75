"""Which name was meant: what other tools call the same thing, and the nearest name that exists."""

from __future__ import annotations

TYPE_CHECKING = False  # typing costs 4 ms; type checkers take this name as true
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

# What users of transformers, torchtitan, nanochat, nanoGPT, llama.cpp and the like type, by what it is here.
# Of several names here, those that the command has are suggested. A word in capitals is an argument that is
# passed without a flag.
_FLAGS = {
    "--lr": "learning-rate max-lr peak-lr base-lr",
    "--num-steps": (
        "epochs num-epochs num-train-epochs n-epochs max-epochs max-steps num-iterations iterations iters "
        "max-iters total-steps train-steps training-steps train-iters max-train-steps"
    ),
    "--batch-size": (
        "batch bs device-batch-size per-device-train-batch-size per-device-eval-batch-size "
        "micro-batch-size micro-batch local-batch-size train-batch-size eval-batch-size "
        "global-batch-size total-batch-size"
    ),
    "--grad-accum": (
        "gradient-accumulation-steps gradient-accumulation grad-accumulation grad-accum-steps accum "
        "accumulate-grad-batches accumulation-steps global-batch-size total-batch-size"
    ),
    "--seq-length": (
        "ctx ctx-len ctx-size context context-length context-size block-size seq-len sequence-len "
        "sequence-length max-seq-len max-seq-length max-length max-len n-ctx window"
    ),
    "--warmup-steps": "warmup warmup-iters warmup-ratio num-warmup-steps lr-warmup-steps",
    "--min-lr-ratio": "min-lr final-lr lr-min",
    "--weight-decay": "wd decay",
    "--grad-clip": "clip clip-grad max-norm max-grad-norm grad-clip-norm clip-norm gradient-clip-val",
    "--beta1": "adam-beta1",
    "--beta2": "adam-beta2",
    "--eps": "adam-epsilon adam-eps epsilon",
    "--dataset": (
        "data data-dir data-path train-data train-file train-dir train-dataset dataset-path dataset-dir "
        "dataset-name train-bin shards shard-dir input input-dir"
    ),
    "--val-dataset": (
        "val-data val-file val-dir val-path val-bin eval-data eval-dataset eval-file validation-file "
        "validation-data test-data"
    ),
    "--init": (
        "model model-path model-name model-name-or-path pretrained pretrained-model base-model base "
        "init-from load load-from checkpoint ckpt ckpt-path checkpoint-path weights from"
    ),
    "--run-dir": (
        "output out o out-dir output-path save-dir save-path checkpoint-dir ckpt-dir logdir log-dir "
        "logging-dir dump-folder run-name"
    ),
    "--eval-every": (
        "eval-steps eval-interval eval-freq eval-frequency val-interval val-every evaluate-every "
        "validation-steps"
    ),
    "--save-every": (
        "save-steps save-interval save-freq checkpoint-interval checkpoint-every ckpt-every "
        "checkpointing-steps"
    ),
    "--keep": "save-total-limit keep-last keep-last-n keep-latest-k max-checkpoints keep-checkpoints",
    "--val-tokens": "eval-tokens eval-iters eval-batches eval-size val-size max-eval-samples",
    "--precision": "dtype torch-dtype mixed-precision fp16 bf16 fp32 amp half float16 bfloat16",
    "--device": "gpu cuda cpu use-cuda no-cuda use-cpu device-type accelerator gpu-id",
    "--resume": "resume-from-checkpoint resume-from resume-training continue continue-from load-checkpoint",
    "--tensorboard": "wandb use-wandb report-to log-with tb enable-tensorboard",
    "--mode": "from-scratch scratch finetune fine-tune pretrained-init do-train",
    "--config": "config-file config-path cfg cfg-path",
    "--seed": "random-seed manual-seed data-seed",
    "--compile": "torch-compile use-compile",
    "--patience": "early-stopping early-stopping-patience",
    "--plan": "dry-run check-only estimate",
    "--dry-run": "plan check-only no-act",
    "--force": "overwrite overwrite-output-dir overwrite-output replace yes clobber",
    "--arch": (
        "architecture model-config model-size size depth n-layer n-layers num-layers layers hidden-size "
        "n-embd dim d-model heads n-head n-heads num-heads flavor preset config model"
    ),
    "--max-tokens": (
        "max-new-tokens n-predict num-predict num-tokens tokens length max-length max-len new-tokens"
    ),
    "--temperature": "temp do-sample",
    "--n": "num-samples samples num-return-sequences n-samples",
    "--prompt": "text message input query question start",
    "--sample-prompt": "prompt sample sample-text generate",
    "--system": "system-prompt sys system-message",
    "--stop": "stop-sequence stop-sequences stop-strings stop-words",
    "--chat": "chat-template conversation interactive instruct",
    "--corpus": (
        "data data-dir data-path dataset input inputs input-dir files file text train-file train-data"
    ),
    "--output": "out o out-dir output-dir output-path save-dir destination dst save-path",
    "--out": "output-dir output-path out-dir save-dir outfile output-file target save-path",
    "--tokenizer": "tokenizer-path tokenizer-name tokenizer-dir tokenizer-file vocab-file vocab tok",
    "--vocab-size": "vocab vocabulary vocab-length num-tokens",
    "--workers": "num-proc jobs threads num-threads processes n-workers procs",
    "--content-field": "field text-column text-field column text-key key json-key json-keys content-key",
    "--pattern": "glob include ext extension extensions suffix",
    "--exclude": "ignore skip without",
    "--shard-tokens": "shard-size tokens-per-shard shard-length max-shard-tokens",
    "--estimate-only": "dry-run plan estimate count-only",
    "--eos-policy": "append-eos add-eos append-eod",
    "--dtype": "outtype out-type quant quantize quantization type torch-dtype precision fp16 bf16 f16",
    "--max-shard-size": "shard-size split split-max-size",
    "--atol": "rtol tolerance tol eps epsilon",
    "--held-out": "held heldout validation val",
    "--count": "length num-tokens n",
    "--json": "as-json format output-format",
    "--quick": "fast no-checksum",
    "--stats": "statistics",
    "--filter": "name names grep match",
    "FILE": (
        "model m model-path model-name model-name-or-path checkpoint ckpt ckpt-path checkpoint-path weights "
        "path file input init pretrained base-model load"
    ),
    "SOURCE": "model model-path input in source src from infile input-file input-dir checkpoint init",
    "TARGET": "output out target dst to outfile output-file output-dir out-dir output-path",
    "DIRECTORY": "data data-dir dataset dir path shards input run-dir contracts",
    "CONTRACT": "contract file path name",
}  # fmt: skip
# A sentence where the other tool's option is not quite the one here.
_NOTES = {
    "--num-steps": ("epoch", "it counts optimizer steps"),
    "--warmup-steps": ("ratio", "it counts optimizer steps"),
    "--min-lr-ratio": ("lr", "it is a fraction of the peak"),
    "--grad-accum": ("batch", "a step takes their product"),
    "--arch": ("", "sizes are those of a preset or of a file"),
    "--mode": ("", "as in --mode from-scratch"),
}
COMMANDS = {
    "pretrain": "train training finetune fine-tune fine_tune sft pretraining fit",
    "evaluate": "eval evaluation val validate-model perplexity ppl score bench lm-eval",
    "generate": "run sample infer inference complete completion prompt predict chat talk",
    "inspect": "info show describe view cat stat about dump metadata header",
    "tensors": "ls list list-tensors keys weights layers",
    "verify": "check validate fsck test checksum",
    "seal": "hash sum crc sign",
    "diff": "compare cmp",
    "stamp": "set edit metadata-set tag annotate",
    "convert": "export import quantize to-gguf gguf from-hf to-hf conv transform merge-shards",
    "init": "create new make random initialize",
    "tokenize encode": "encode tok tokenise prepare preprocess pretokenize shard data",
    "tokenize train": "train-tokenizer tokenizer vocab bpe",
    "tokenize decode": "decode detokenize",
    "tokenize merge": "merge",
    "repair-manifest": "repair fix manifest rebuild index",
    "report": "html plot chart curves dashboard tensorboard summary compare-runs",
    "contracts check": "contract verdict gate",
    "contracts lint": "lint",
    "--version": "version",
    "--help": "usage man",
    # Of `apr tokenize` and `apr contracts`.
    "train": "learn fit bpe create",
    "encode": "run tokenize shard prepare corpus",
    "decode": "show print detokenize text cat head",
    "merge": "join concat combine",
    "check": "run verify test verdict",
    "lint": "validate",
    "list": "ls show",
}
# Closer than difflib's default: a suggestion that has nothing to do with the word is worse than none.
_CUTOFF = 0.65


def meant_flags(typed: str, flags: Collection[str], arguments: Collection[str] = ()) -> list[str]:
    """Return the flags or arguments that an unknown flag probably stands for, the likeliest first.

    Args:
        typed: the flag, with or without dashes, such as `--learning_rate`.
        flags: the flags that there are, such as `--lr`.
        arguments: the names of arguments without a flag, in capitals.
    """
    # torchtitan's flags have a section: --training.seq_len.
    name = typed.lstrip("-").lower().replace("_", "-").rpartition(".")[2]
    if f"--{name}" in flags:
        return [f"--{name}"]
    here = {*flags, *arguments}
    # A flag that was cut short: --val stands for --val-dataset or --val-tokens.
    longer = [flag for flag in flags if flag.startswith(f"--{name}-")]
    return _synonyms(name, _FLAGS, here) or longer or _nearest(name, flags, _FLAGS, here)


def flag_note(typed: str, flag: str) -> str:
    """Return what to know about a flag that stands for another tool's, or an empty text."""
    part, note = _NOTES.get(flag, ("", ""))
    return note if part in typed else ""


def meant_commands(typed: str, commands: Collection[str]) -> list[str]:
    """Return the commands that an unknown one probably stands for, the likeliest first.

    Args:
        typed: the word.
        commands: the commands that there are; for one with subcommands, also those: `tokenize encode`.
    """
    name = typed.lower()
    return _synonyms(name, COMMANDS, commands) or _nearest(name, commands, COMMANDS, commands)


def _synonyms(name: str, table: Mapping[str, str], existing: Collection[str]) -> list[str]:
    return [here for here, others in table.items() if here in existing and name in others.split()]


def _nearest(
    typed: str, names: Collection[str], table: Mapping[str, str], existing: Collection[str]
) -> list[str]:
    """Return what the nearest name stands for, among those that there are and those of other tools."""
    from difflib import get_close_matches

    # Without dashes, which any two flags have in common.
    bare = {name.lstrip("-"): name for name in names}
    # `encode`, which stands in `apr tokenize encode`.
    last = {name.rpartition(" ")[2]: name for name in names if " " in name}
    others = {name for here, line in table.items() if here in existing for name in line.split()}
    for close in get_close_matches(typed.lstrip("-"), [*bare, *last, *others], n=1, cutoff=_CUTOFF):
        if close in bare:
            return [bare[close]]
        return _synonyms(close, table, existing) or [last[close]]
    return []
