"""Compare a GGUF file with llama.cpp: both must predict the same tokens from the same weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from apr.errors import AprError, RefusedError, UnavailableError
from apr.files import path_of
from apr.gguf.writer import rounded, write

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from apr.container.tensor_file import TensorFile
    from apr.convert.to_gguf import GgufModel
    from apr.model.decoder import Decoder

# Files below this size are compared without being asked to. SmolLM2-135M in q8_0 has 0.14 GB, and takes 26 s
# of processor time.
_MAX_SIZE = 2_000_000_000
# The share of the machine's memory that a comparison takes without being asked to.
_MEMORY_SHARE = 0.5
# Sums in another order decide near ties otherwise. With a wrong order of rows, a wrong scale or a wrong
# frequency, the two agree at a few percent of the positions.
_LEAST_AGREEMENT = 0.99
# For the file as it is stored. A quantized file whose blocks are read otherwise agrees at a few percent.
_LEAST_AS_STORED = 0.5
# Positions that are predicted in each text, and tokens whose log probabilities are compared at each.
_POSITIONS, _TOP = 16, 8
# Ids of a text that are read. Longer ones take longer, and show nothing more.
_MAX_IDS = 128
TEXTS = (
    "The history of the lighthouse begins with a fire on a hill. Sailors who came home at night saw it from",
    'def fibonacci(n: int) -> int:\n    """The n-th Fibonacci number."""\n    if n < 2:\n        return n',
    "Question: What is the capital of France, and which river flows through it?\nAnswer: The capital is",
    "1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610, 987,",
    "<html>\n  <head><title>Ship's log</title></head>\n  <body>\n    <h1>Monday, 14 May 1804</h1>\n    <p>",
    "Es war einmal ein König, der hatte drei Töchter. Die älteste sprach zu ihrem Vater:",
    '"I don\'t think we\'ve met," she said. "I\'m Ada. You\'re the new engineer?"\n\n"Yes," he said, and',
    "| name | mass (kg) | radius (km) |\n|---|---|---|\n| Mercury | 3.301e23 | 2439.7 |\n| Venus | 4.8",
)


@dataclass(frozen=True)
class Agreement:
    """How far llama.cpp and `apr` agree about a GGUF file."""

    positions: int
    """The positions that both predicted the next token of."""
    same_token: int
    """Those at which both have the same most likely token."""
    largest_difference: float
    """The largest difference between their log probabilities of the same token, in nats, among the tokens
    that llama.cpp finds most likely at each position."""
    same_token_as_stored: int
    """Those at which llama.cpp has that token too if it rounds the inputs of matrices to fewer bits, as it
    does where weights are not f32."""
    same_ids: int | None
    """The number of the 8 texts that llama.cpp's tokenizer turns into the same ids; None if `apr` cannot
    build the tokenizer."""

    def __str__(self) -> str:
        share = self.same_token / self.positions
        line = (
            f"llama.cpp predicts the same token at {self.same_token} of {self.positions} positions "
            f"({share:.1%}); the largest difference of log probabilities is {self.largest_difference:.4f}"
        )
        if self.same_token_as_stored != self.same_token:
            line += f"; with its own rounding, at {self.same_token_as_stored / self.positions:.1%}"
        if self.same_ids is not None:
            line += f"; it gives {self.same_ids} of {len(TEXTS)} texts the same ids"
        return line


def reason_to_skip(model: GgufModel, *, wanted: bool | None) -> str | None:
    """Return why a model is not compared: empty if that was asked for, None if it is compared.

    Args:
        model: what is written.
        wanted: True compares in any case, False never.

    Raises:
        UnavailableError: `wanted` is True, but a package is missing.
        RefusedError: `wanted` is True, but the file has no tokenizer.
    """
    if wanted is False:
        return ""
    if "tokenizer.ggml.tokens" not in model.keys:
        # Its server ends the process where it turns a token into text.
        reason = "the file has no tokenizer, which llama.cpp's server needs"
        if wanted:
            raise RefusedError(f"{reason}; pass --no-check")
        return reason
    for package in ("xllamacpp", "torch"):
        if find_spec(package) is None:
            if wanted:
                raise UnavailableError(f"--check needs {package}; run pip install {package}")
            return f"{package} is not installed; run pip install {package}"
    size = sum(tensor.nbytes for tensor in model.tensors)
    if wanted is None and size >= _MAX_SIZE:
        return f"the file takes {size / 1e9:.1f} GB; pass --check to compare it all the same"
    # The weights in float32, here and in llama.cpp.
    needed = 8 * sum(prod(tensor.shape) for tensor in model.tensors)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if wanted is None and needed > memory * _MEMORY_SHARE:
        return (
            f"it takes {needed / 1e9:.1f} GB of the {memory / 1e9:.1f} GB of memory; pass --check to compare "
            "it all the same"
        )
    return None


def compare(path: Path, model: GgufModel, file: TensorFile, *, target: Path) -> Agreement:
    """Let llama.cpp and `apr` predict the next token at up to 16 positions of 8 texts, and compare.

    llama.cpp rounds the inputs of matrices that are not f32, which alone changes the most likely token of
    SmolLM2-135M in q8_0 at 5 % of the positions. So that nothing but its understanding of the file can
    differ, it reads a copy in f32 with the same values. What it predicts from the file itself is reported.

    Args:
        path: the complete file.
        model: what was written to it.
        file: the .apr file.
        target: the GGUF file as messages name it.

    Raises:
        RefusedError: llama.cpp cannot run the file, or predicts other tokens.
    """
    ids, are_texts = _ids(file, model)
    # llama.cpp's server needs room for the token that it generates.
    longest = min(_MAX_IDS, int(str(model.keys[f"{model.architecture}.context_length"])) - 1)
    prompts = [of_text[:longest] for of_text in ids]
    first = [max(1, len(prompt) - _POSITIONS + 1) for prompt in prompts]
    ours = _predictions(_decoder(file, model), prompts, first)
    stored = _ask(path, model, prompts, first, target)
    theirs = stored
    if any(tensor.dtype != "f32" for tensor in model.tensors):
        with TemporaryFile(dir=target.parent) as copy:
            write(copy, model.architecture, model.keys, [tensor.dequantized() for tensor in model.tensors])
            copy.flush()
            theirs = _ask(path_of(copy), model, prompts, first, target)
    same, largest = _compared(ours, theirs["top"])
    agreement = Agreement(
        positions=sum(map(len, ours)),
        same_token=same,
        largest_difference=largest,
        same_token_as_stored=_compared(ours, stored["top"])[0],
        same_ids=sum(a == b for a, b in zip(ids, stored["ids"], strict=True)) if are_texts else None,
    )
    for count, least in ((same, _LEAST_AGREEMENT), (agreement.same_token_as_stored, _LEAST_AS_STORED)):
        if count < least * agreement.positions:
            raise RefusedError(
                f"{target}: {agreement}; that is less than {least:.0%}, so the file was not written; pass "
                "--no-check to write it all the same",
                path=target,
            )
    return agreement


def _predictions(decoder: Decoder, prompts: list[list[int]], first: list[int]) -> list[Tensor]:
    """Return the log probabilities of the next token after each prefix: float64 [prefixes, V] a prompt."""
    import torch

    with torch.no_grad():
        return [
            decoder(torch.tensor([prompt]))[0, start - 1 :].double().log_softmax(-1)
            for prompt, start in zip(prompts, first, strict=True)
        ]


def _compared(ours: list[Tensor], theirs: list[list[list[tuple[int, float]]]]) -> tuple[int, float]:
    """Return at how many positions the most likely token is the same, and the largest difference."""
    import torch

    same, largest = 0, 0.0
    for of_prompt, top_of_prompt in zip(ours, theirs, strict=True):
        for logprobs, top in zip(of_prompt, top_of_prompt, strict=True):
            tokens = torch.tensor([token for token, _ in top])
            expected = torch.tensor([logprob for _, logprob in top], dtype=torch.float64)
            same += int(logprobs.argmax() == tokens[0])
            largest = max(largest, float((logprobs[tokens] - expected).abs().max()))
    return same, largest


def _ids(file: TensorFile, model: GgufModel) -> tuple[list[list[int]], bool]:
    """Return ids to predict from, and whether they are those of TEXTS; random ones if they are unknown."""
    import numpy as np

    from apr.data.tokenizers import load_tokenizer

    try:
        tokenizer = load_tokenizer(file.path).tokenizer
    except (AprError, OSError):  # a kind that is not read here, or a model in several files
        rng = np.random.default_rng(0)
        return [rng.integers(0, model.config.vocab_size, 64).tolist() for _ in TEXTS], False
    return [tokenizer.encode(text).ids for text in TEXTS], True


def _ask(
    path: Path, model: GgufModel, prompts: list[list[int]], first: list[int], target: Path
) -> dict[str, Any]:
    """Return what llama.cpp predicts."""
    tokens: Any = model.keys["tokenizer.ggml.tokens"]
    plain = next((id_ for id_, token in enumerate(tokens) if token.isascii() and token.isalpha()), 0)
    child = run_llama_cpp(path, prompts, first, top=_TOP, plain=plain, texts=TEXTS)
    if child.returncode:
        # llama.cpp's own lines have their level after the time. The last line is that of an abort.
        lines = [line.strip() for line in child.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if " E " in line] or lines[-1:] or [f"exit code {child.returncode}"]
        raise RefusedError(
            f"{target}: llama.cpp cannot run the file: {errors[0]}; it was not written; pass --no-check to "
            "write it all the same",
            path=target,
        )
    answer: dict[str, Any] = json.loads(child.stdout)
    return answer


def run_llama_cpp(
    path: Path, prompts: list[list[int]], first: list[int], *, top: int, plain: int, texts: Sequence[str]
) -> subprocess.CompletedProcess[str]:
    """Run `apr.convert.llama_cpp`, which describes the request, in a process that llama.cpp may end."""
    request = {
        "path": str(path),
        "prompts": prompts,
        "first": first,
        "top": top,
        "plain": plain,
        "texts": texts,
        "parent": os.getpid(),
    }
    return subprocess.run(
        [sys.executable, "-m", "apr.convert.llama_cpp"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def _decoder(file: TensorFile, model: GgufModel) -> Decoder:
    """Return a decoder with the weights of an .apr file, as the dtypes of the GGUF file round them.

    They are not read back from the GGUF file. Rows that are written and read in the same wrong order would
    pass unnoticed.
    """
    import torch

    from apr.model.decoder import Decoder

    decoder = Decoder.from_apr(file.path)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            values = parameter.numpy()
            parameter.copy_(torch.from_numpy(rounded(values, model.dtypes[name])))
    return decoder
