"""Encode what a datatrove pipeline wrote: a step that encodes one part of it in each task.

    python examples/encode_datatrove.py corpus model.apr shards --tasks 8 --workers 2

The corpus is a directory of JSON lines, as datatrove's JsonlWriter writes them (the text is under `text`).
With SlurmPipelineExecutor instead of the local one, the same step runs on many machines; pass the executor
that writes the corpus as `depends`. A task that was killed is run again by the same command, and continues
after its last whole shard.
"""

import argparse
from pathlib import Path

from datatrove.data import DocumentsPipeline
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from apr.data import EncodeOptions, encode_corpus, merge_parts


class EncodePart(PipelineStep):
    """Encode the part of a corpus that belongs to the task.

    Args:
        corpus: a file or directory with text.
        tokenizer: the tokenizer, or a model file with one.
        output: the directory of the whole encoding; the parts are beside it.
        options: other options of `EncodeOptions`.
    """

    type = "TOKENIZER"
    name = "apr"

    def __init__(self, corpus: str, tokenizer: Path, output: Path, **options: int) -> None:
        super().__init__()
        self.corpus, self.tokenizer, self.output, self.options = corpus, tokenizer, output, options

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Encode part rank + 1 of world_size. The documents are read from the corpus, not from `data`."""
        output = part_directory(self.output, rank)
        with self.track_time():
            report = encode_corpus(
                EncodeOptions(
                    **self.options,
                    corpus=(self.corpus,),
                    tokenizer=self.tokenizer,
                    output=output,
                    content_field="text",
                    part=f"{rank + 1}/{world_size}",
                    # A part that was cut off before its first shard starts over without a flag.
                    resume=any(output.glob("shard-*.bin")),
                )
            )
        self.stat_update("tokens", value=report.manifest["total_tokens"])
        yield from data or ()


def part_directory(output: Path, rank: int) -> Path:
    """Return the directory of a task's part."""
    return Path(f"{output}.part-{rank + 1}")


def main() -> None:
    """Read the arguments, run the tasks and join their parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus")
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--workers", type=int, default=1, help="tasks that run at the same time")
    parser.add_argument("--shard-tokens", type=int, default=10_000_000)
    given = parser.parse_args()
    step = EncodePart(given.corpus, given.tokenizer, given.output, workers=1, shard_tokens=given.shard_tokens)
    # datatrove remembers in the logging directory which tasks are complete, and skips them.
    LocalPipelineExecutor(
        [step], tasks=given.tasks, workers=given.workers, logging_dir=f"{given.output}.logs"
    ).run()
    parts = [part_directory(given.output, rank) for rank in range(given.tasks)]
    report = merge_parts(parts, given.output, resume=any(given.output.glob("shard-*.bin")))
    print(f"{given.output}: {report.manifest['total_tokens']:,} tokens from {given.tasks} parts")


if __name__ == "__main__":
    main()
