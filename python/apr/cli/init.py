"""`apr init`: create a model file with random weights."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.filesize import decimal

from apr.cli._console import progress_bar
from apr.convert import FloatDtype
from apr.errors import RefusedError, UsageError, about
from apr.options import Alias, Metavar, Unset
from apr.path_arguments import foreign_name


@dataclass(frozen=True)
class Command:
    """Create a model file with random weights to start training from. The same seed gives the same bytes.

    Matrices are drawn from a normal distribution with standard deviation 0.02, divided by sqrt(2 x layers)
    for those that write to the residual stream, as in GPT-2. Norms are 1 and biases 0.

    Example: apr init --arch qwen2.5-0.5b -o fresh.apr

    Example: apr init --arch sizes.yaml --tokenizer my-tokenizer/ -o fresh.apr
    """

    arch: Annotated[str, Metavar("PRESET|FILE"), Alias("--preset")]
    """A preset (qwen2.5-0.5b, smollm2-135m, qwen2-4m), a YAML file of sizes, or transformers' config.json. A
    YAML file has the keys architecture (such as qwen2 or llama), hidden_size, num_layers, num_heads,
    num_kv_heads, intermediate_size, max_position_embeddings, rope_theta, rms_norm_eps and
    tie_word_embeddings."""
    out: Annotated[Path, Alias("-o", "--output")]
    """The .apr file to write."""
    seed: int = 42
    """Seed of the random weights."""
    dtype: FloatDtype = "f32"
    """Data type to store the weights in."""
    tokenizer: Path | None = None
    """A tokenizer directory, tokenizer.json or model file. The tokenizer is stored in the file and sets the
    vocabulary size."""
    vocab_size: Annotated[
        int | None, Unset("the tokenizer's vocabulary size, or else the one in the preset or YAML file")
    ] = None
    """Number of rows in the embedding."""
    json: bool = False
    """Print one JSON object to standard output."""

    def run(self) -> int:
        """Write the file and print what it holds."""
        started = time.monotonic()
        if not 0 <= self.seed < 2**63:  # the range of torch's generators
            raise UsageError(f"--seed is {self.seed}; it must be at least 0 and below 2^63")
        problem = foreign_name(str(self.out))
        if problem is not None:
            raise UsageError(problem, path=self.out)
        least, tokenizer_metadata = self._vocabulary()
        vocab_size, tensors, parameters = self._write(least, tokenizer_metadata)
        size = self.out.stat().st_size
        if self.json:
            facts = {
                "target": str(self.out),
                "tensors": tensors,
                "param_count": parameters,
                "vocab_size": vocab_size,
                "size_bytes": size,
                "seconds": round(time.monotonic() - started, 3),
            }
            print(json.dumps(facts))
        else:
            print(
                f"{self.out}: {tensors} tensors, {parameters / 1e6:.1f} M parameters, "
                f"vocabulary {vocab_size:,}, {decimal(size)}, seed {self.seed}"
            )
        return 0

    def _write(self, least: int, tokenizer_metadata: dict[str, Any]) -> tuple[int, int, int]:
        """Write the file and return the vocabulary size, and the number of tensors and of parameters."""
        # Imported here, because these load torch, which --help does without.
        from apr.container.torch_dtypes import TORCH
        from apr.container.writer import Writer
        from apr.model.init import fresh_weights, load_arch

        config = load_arch(self.arch, least)
        metadata = {
            "model_type": config.family,
            "license": None,
            "data_source": None,
            "data_license": None,
            **config.to_metadata(),
            **tokenizer_metadata,
        }
        tensors = parameters = 0
        with progress_bar() as bar, Writer(self.out, metadata) as writer:
            task = bar.add_task("writing", total=None)
            for name, weights in fresh_weights(config, self.seed):
                bar.update(task, description=name)
                writer.add(name, weights.to(TORCH[self.dtype]))
                tensors, parameters = tensors + 1, parameters + weights.numel()
            # Known only now. The writer stores the metadata when it is closed.
            writer.metadata["param_count"] = parameters
        return config.vocab_size, tensors, parameters

    def _vocabulary(self) -> tuple[int, dict[str, Any]]:
        """Return the smallest vocabulary size that is needed, and the tokenizer's metadata."""
        from apr.model.init import VOCABULARIES, read_arch
        from apr.model.metadata import canonical

        with about(self.arch):
            stated = canonical(read_arch(self.arch)).get("vocab_size")
        if None not in (stated, self.vocab_size) and stated != self.vocab_size:
            raise UsageError(
                f"{self.arch}: vocab_size is {stated}, but --vocab-size is {self.vocab_size}; leave one out",
                path=self.arch,
            )
        size = VOCABULARIES.get(self.arch) if stated is None else stated
        metadata: dict[str, Any] = {}
        if self.tokenizer is not None:
            from apr.data.identity import MODEL_KEY
            from apr.data.tokenizers import load_tokenizer

            tokenizer = load_tokenizer(self.tokenizer)
            size, metadata = tokenizer.vocab_size, tokenizer.metadata()
            if not metadata:
                raise RefusedError(
                    f"{self.tokenizer}: a model file can only store a byte-level BPE tokenizer; leave out "
                    "--tokenizer and pass --vocab-size",
                    path=self.tokenizer,
                )
            metadata[MODEL_KEY] = tokenizer.identity
            # More rows than ids are fine: Qwen2.5 has 151,936 rows for 151,665 ids.
            if self.vocab_size is not None and self.vocab_size < size:
                raise UsageError(
                    f"--vocab-size {self.vocab_size} is smaller than the tokenizer's vocabulary of {size}"
                )
        if self.vocab_size is not None:
            size = self.vocab_size
        if size is None:
            raise UsageError(
                f"--arch {self.arch} does not set a vocabulary size; pass --tokenizer or --vocab-size"
            )
        return size, metadata
