"""`apr init`: a freshly initialized model file."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.filesize import decimal
from tyro.conf import FlagCreatePairsOff as Flag

from apr.convert import FloatDtype
from apr.errors import RefusedError, UsageError
from apr.options import Alias


@dataclass(frozen=True)
class Command:
    """Write a model file with fresh weights, to start training from; the same seed gives the same bytes.

    Matrices are normal with a standard deviation of 0.02 (those that write to the residual stream smaller, as
    in GPT-2), norms 1, biases 0.

    Example: apr init --arch qwen2.5-0.5b -o fresh.apr

    Example: apr init --arch sizes.yaml --tokenizer my-tokenizer/ -o fresh.apr
    """

    arch: Annotated[str, Alias("--preset")]
    """A preset (qwen2.5-0.5b, smollm2-135m, qwen2-4m), or a YAML file of sizes as metadata name them."""
    out: Annotated[Path, Alias("-o", "--output")]
    """The .apr file to write."""
    seed: int = 42
    """Of the weights."""
    dtype: FloatDtype = "f32"
    """Store the weights in this dtype."""
    tokenizer: Path | None = None
    """A tokenizer directory, tokenizer.json or model file: gives the vocabulary's size, and goes along."""
    vocab_size: int | None = None
    """Rows of the embedding (default: the tokenizer's, else the preset's or the YAML file's)."""
    json: Annotated[bool, Flag] = False
    """Print one JSON object on standard output."""

    def run(self) -> int:
        """Write the file, and say what is in it."""
        import apr
        from apr.container.torch_dtypes import TORCH
        from apr.model.init import fresh_weights, load_arch

        started = time.monotonic()
        if not 0 <= self.seed < 2**63:  # torch's generators take no more
            raise UsageError(f"--seed {self.seed}: it must be from 0 to below 2^63")
        vocab_size, carried = self._vocabulary()
        config = load_arch(self.arch, vocab_size)
        metadata = {
            "model_type": config.family,
            "license": None,
            "data_source": None,
            "data_license": None,
            **config.to_metadata(),
            **carried,
        }
        tensors = values = 0
        from rich.console import Console
        from rich.progress import Progress

        with (
            Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar,
            apr.Writer(self.out, metadata) as writer,
        ):
            task = bar.add_task("writing", total=None)
            for name, weights in fresh_weights(config, self.seed):
                bar.update(task, description=name)
                writer.add(name, weights.to(TORCH[self.dtype]))
                tensors, values = tensors + 1, values + weights.numel()
            writer.metadata["param_count"] = values
        found = {
            "target": str(self.out),
            "tensors": tensors,
            "param_count": values,
            "vocab_size": vocab_size,
            "size_bytes": self.out.stat().st_size,
            "seconds": round(time.monotonic() - started, 3),
        }
        if self.json:
            print(json.dumps(found))
        else:
            print(
                f"{self.out}: {tensors} tensors, {values / 1e6:.1f} M parameters, vocabulary {vocab_size:,}, "
                f"{decimal(self.out.stat().st_size)}, seed {self.seed}"
            )
        return 0

    def _vocabulary(self) -> tuple[int, dict[str, object]]:
        """The vocabulary's size, and the tokenizer's metadata."""
        from apr.files import read_options
        from apr.model.init import PRESETS, VOCABULARIES

        published = VOCABULARIES.get(self.arch)
        if self.arch not in PRESETS and Path(self.arch).is_file():
            published = read_options(Path(self.arch)).get("vocab_size")
        carried: dict[str, object] = {}
        least = None
        if self.tokenizer is not None:
            from apr.data.tokenizers import load_tokenizer

            loaded = load_tokenizer(self.tokenizer)
            carried, least = loaded.metadata(), loaded.vocab_size
            if not carried:
                raise RefusedError(
                    f"{self.tokenizer}: a tokenizer that metadata have no form for (byte-level BPE has one): "
                    "leave --tokenizer out and give --vocab-size"
                )
        size = next((size for size in (self.vocab_size, least, published) if size is not None), None)
        if size is None:
            raise UsageError(
                f"--arch {self.arch} has no vocabulary of its own: give --tokenizer or --vocab-size"
            )
        if least is not None and size < least:
            raise UsageError(f"--vocab-size {size} is less than the tokenizer's {least}")
        return size, carried
