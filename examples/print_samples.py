"""Train a model, and print what it writes at each evaluation.

    python examples/print_samples.py model.apr shards run 'def main('

A callback gets the record of each evaluation, and of each checkpoint, which an evaluation writes. It may do
anything with them: here it loads the checkpoint and continues a text. (For this alone there is also
`apr pretrain --sample-prompt TEXT`, which loads nothing.)
"""

import argparse
from pathlib import Path

import apr
from apr.data import load_tokenizer
from apr.model import Decoder
from apr.train import Callbacks, CheckpointRecord, EvaluationRecord, PretrainConfig, Result, pretrain


def train(init: Path, dataset: Path, run_dir: Path, prompt: str, **options: object) -> Result:
    """Train, and print a sample before the first step and at each evaluation.

    Args:
        init: the model file, with a tokenizer.
        dataset: the shard directory.
        run_dir: the directory of the run.
        prompt: the text to continue.
        options: other options of `PretrainConfig`.
    """
    tokenizer = load_tokenizer(init)
    ids = tokenizer.tokenizer.encode(prompt).ids

    def sample(path: Path) -> None:
        (result,) = apr.generate(Decoder.from_apr(path), ids, max_tokens=40)
        print(f"  {prompt}{tokenizer.decode(result.ids)!r}", flush=True)

    def on_evaluation(record: EvaluationRecord) -> None:
        print(f"step {record.step}: held-out loss {record.val_loss:.4f}", flush=True)
        if record.step == 0:  # before training there is no checkpoint yet
            sample(init)

    def on_checkpoint(record: CheckpointRecord) -> None:
        if record.epoch is not None:  # not those of --save-every
            sample(record.path)

    config = PretrainConfig(init=init, dataset=dataset, run_dir=run_dir, **options)
    return pretrain(config, callbacks=Callbacks(on_evaluation=on_evaluation, on_checkpoint=on_checkpoint))


def main() -> None:
    """Read the arguments and train."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("init", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("prompt")
    parser.add_argument("--num-steps", type=int, default=200)
    parser.add_argument("--eval-every", type=int, default=50)
    parser.add_argument("--seq-length", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=4)
    options = vars(parser.parse_args())
    train(**options)


if __name__ == "__main__":
    main()
