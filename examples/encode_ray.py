"""Encode a corpus with Ray: one task for each part, on any number of machines, then join the parts.

    python examples/encode_ray.py corpus model.apr shards --parts 32 --workers 8

All paths are on a file system that every machine sees. A task whose worker dies is started again, on any
machine, and continues after its last whole shard; so does the same command after the driver died.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import ray

from apr.data import EncodeOptions, encode_corpus, merge_parts


@ray.remote(max_retries=-1)
def encode_part(corpus: str, tokenizer: Path, parts: int, number: int, options: dict[str, Any]) -> Path:
    """Encode one part of the corpus, and return its directory.

    Args:
        corpus: a file or directory with text.
        tokenizer: the tokenizer, or a model file with one.
        parts: the number of parts.
        number: the part, from 1.
        options: other options of `EncodeOptions`, with the directory of the parts as `output`.
    """
    output = Path(f"{options['output']}.part-{number}")
    print(f"part {number}/{parts}: process {os.getpid()}", flush=True)
    # A part that was cut off before its first shard starts over without a flag.
    resume = any(output.glob("shard-*.bin"))
    encode_corpus(
        EncodeOptions(
            **options | {"output": output},
            corpus=(corpus,),
            tokenizer=tokenizer,
            part=f"{number}/{parts}",
            resume=resume,
        )
    )
    return output


def encode(corpus: str, tokenizer: Path, output: Path, parts: int, workers: int, shard_tokens: int) -> None:
    """Encode a corpus in parts, and join them.

    Args:
        corpus: a file or directory with text.
        tokenizer: the tokenizer, or a model file with one.
        output: the directory for the shards; the parts are beside it.
        parts: the number of parts: a few for each machine, so that none waits long for the last.
        workers: the number of threads, and of cores that Ray reserves, of each task.
        shard_tokens: the size of a shard.
    """
    options = {"output": output.resolve(), "workers": workers, "shard_tokens": shard_tokens}
    task = encode_part.options(num_cpus=workers)
    given = (str(Path(corpus).resolve()), tokenizer.resolve(), parts)
    done = ray.get([task.remote(*given, number, options) for number in range(1, parts + 1)])
    report = merge_parts(done, output, resume=any(output.glob("shard-*.bin")))
    print(f"{output}: {report.manifest['total_tokens']:,} tokens from {parts} parts")


def main() -> None:
    """Read the arguments, connect to Ray and encode."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus")
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--parts", type=int, default=8)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--shard-tokens", type=int, default=10_000_000)
    parser.add_argument("--address", help="a Ray cluster, such as auto; otherwise this machine")
    arguments = vars(parser.parse_args())
    ray.init(address=arguments.pop("address"))
    encode(**arguments)


if __name__ == "__main__":
    main()
