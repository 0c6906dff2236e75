"""`apr generate`: continue a text, or answer in a chat."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import FlagCreatePairsOff as Flag

from apr.cli.main import EXIT_INTERRUPTED
from apr.errors import AprError, UsageError, about
from apr.files import json_text
from apr.model.sampling import GenerateOptions
from apr.options import Metavar, Unset
from apr.plurals import counted
from apr.train.config import Precision

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from apr.data.prompt import PromptTokenizer
    from apr.data.text_stream import TextStream
    from apr.model.config import ModelConfig
    from apr.model.decoder import Decoder
    from apr.model.generate import Generated


@dataclass(frozen=True, kw_only=True)
class Command(GenerateOptions):
    """Continue a text with a model, or answer a message in the model's own chat template.

    Without --prompt and --ids, the prompt is read from standard input; its last line break is left out. In a
    terminal the text appears as it is generated. Ctrl-C ends it and keeps what is there.

    Example: apr generate model.apr --prompt 'The sea is' --max-tokens 40
    """

    file: Annotated[Path, tyro.conf.Positional]
    """The model file."""
    prompt: Annotated[str | None, Metavar("TEXT"), Unset("standard input")] = None
    """Text to continue, or with --chat the user's message. Special tokens in it count as such."""
    ids: Annotated[tuple[int, ...], Metavar("ID [ID ...]"), Unset("none")] = ()
    """Token ids to continue, instead of a text. The file then needs no tokenizer."""
    chat: Annotated[bool, Flag] = False
    """Put the prompt into the model's chat template as the message of a user, and generate the answer."""
    system: Annotated[str | None, Metavar("TEXT"), Unset("none")] = None
    """System message for --chat."""
    tokenizer: Annotated[Path | None, Unset("the one in the file")] = None
    """Tokenizer: a directory, a tokenizer.json or a model file."""
    stop: Annotated[tuple[str, ...], Metavar("TEXT [TEXT ...]"), Unset("none")] = ()
    """End the text before the first of these. It always ends at the model's own end of text."""
    device: Annotated[str, Metavar("DEVICE")] = "auto"
    """Device to compute on: auto, cpu, cuda or cuda:N."""
    precision: Annotated[Precision | None, Unset("bf16 on CUDA, fp32 on the CPU")] = None
    """Number format of the weights and of the computation."""
    json: Annotated[bool, Flag] = False
    """Print one JSON object to standard output, with the ids and their log probabilities."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ids and (self.prompt is not None or self.chat):
            raise UsageError("--ids cannot be used with --prompt or --chat; leave one of them out")
        if self.system is not None and not self.chat:
            raise UsageError("--system can only be used with --chat")
        if "" in self.stop:
            raise UsageError("--stop must not be empty")

    def run(self) -> int:
        """Generate, print the text and how fast it came, and return the exit code."""
        # Imported here, because they load torch, which --help does without.
        from apr.data.prompt import metadata_stop_ids
        from apr.model.generate import Generated, check_prompt, stream

        metadata, config = self._describe()
        tokenizer = self._tokenizer(metadata)
        prompt = list(self.ids) if tokenizer is None or self.ids else self._encode(tokenizer)
        stop_ids = metadata_stop_ids(metadata) if tokenizer is None else tokenizer.stop_ids()
        with about(self.file):
            check_prompt(config, prompt)  # before the weights are read
        model = self._load()
        results = [Generated() for _ in range(self.n)]
        output = _Output(self, tokenizer, prompt, results, stop_ids)
        interrupted = False
        started = time.perf_counter()
        first = started
        try:
            for count in stream(model, prompt, self, results, stop_ids=stop_ids, ended=output.push):
                if count == 1:
                    first = time.perf_counter()
        except KeyboardInterrupt:
            interrupted = True
        ended = time.perf_counter()
        output.finish()
        tokens = sum(len(result.ids) for result in results)
        # The first token is the prompt's: what it takes is reading the prompt.
        later = max(tokens - self.n, 0)
        rates = {
            "prompt_tokens_per_second": round(len(prompt) / max(first - started, 1e-9), 2),
            "tokens_per_second": round(later / (ended - first), 2) if later else None,
        }
        if self.json:
            print(json_text(self._report(model, prompt, output, rates)))
        speed = f", {rates['tokens_per_second']:,.1f} tokens/s" if later else ""
        seed = "" if self.greedy else f"; seed {self.seed}"
        print(
            f"{counted(tokens, 'token')} after a prompt of {len(prompt):,} in {ended - started:.2f} s"
            f"{speed}{seed}{'; interrupted' if interrupted else ''}",
            file=sys.stderr,
        )
        return EXIT_INTERRUPTED if interrupted else 0

    def _describe(self) -> tuple[Mapping[str, Any], ModelConfig]:
        from apr.container.load import load
        from apr.model.config import ModelConfig
        from apr.model.match import has_head

        with load(self.file) as file, about(file.path):
            config = ModelConfig.from_metadata(file.metadata, head_present=has_head(file))
            return file.metadata, config

    def _tokenizer(self, metadata: Mapping[str, Any]) -> PromptTokenizer | None:
        """Return the tokenizer; None if only ids are wanted and the file's tokenizer cannot be rebuilt."""
        from apr.data.prompt import PromptTokenizer
        from apr.data.same_tokenizer import (
            check_same_tokenizer,
            facts_of_model,
            facts_of_tokenizer,
            unknown_note,
        )

        try:
            tokenizer = PromptTokenizer(self.file, metadata, self.tokenizer)
        except (AprError, ModuleNotFoundError) as error:
            if not self.ids:
                if isinstance(error, AprError) and self.tokenizer is None:
                    raise type(error)(f"{error}; or pass --ids", path=error.path) from None
                raise
            if self.stop:
                raise UsageError(f"--stop needs a tokenizer, but {error}") from None
            print(f"note: printing ids, because {error}", file=sys.stderr)
            return None
        if self.tokenizer is not None:
            facts = (facts_of_model(self.file, metadata), facts_of_tokenizer(tokenizer.loaded))
            check_same_tokenizer(*facts)
            if (unknown := unknown_note(facts)) is not None:
                print(f"note: {unknown}", file=sys.stderr)
        return tokenizer

    def _encode(self, tokenizer: PromptTokenizer) -> list[int]:
        text = self.prompt
        if text is None:
            if sys.stdin is None or sys.stdin.isatty():
                raise UsageError("no prompt; pass --prompt TEXT, --ids ID …, or text on standard input")
            text = sys.stdin.read().removesuffix("\n")
        if not self.chat:
            return tokenizer.encode(text)
        messages = [{"role": "user", "content": text}]
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": self.system})
        return tokenizer.encode_chat(messages)

    def _load(self) -> Decoder:
        import torch

        from apr.model.decoder import Decoder
        from apr.train.machine.device import choose_device, default_precision

        device = choose_device(self.device)
        precision = self.precision or default_precision(device)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        return Decoder.from_apr(self.file, device, dtype).eval()

    def _report(
        self, model: Decoder, prompt: Sequence[int], output: _Output, rates: Mapping[str, object]
    ) -> dict[str, object]:
        samples = [
            {"text": text, **asdict(result)}
            for text, result in zip(output.texts, output.results, strict=True)
        ]
        return {
            "file": str(self.file),
            "prompt_ids": list(prompt),
            # Those of the first sample, which is the only one unless --n asks for more.
            **samples[0],
            "samples": samples,
            "temperature": self.temperature,
            "seed": self.seed,
            "device": str(model.head_weight.device),
            "precision": "bf16" if model.head_weight.itemsize == 2 else "fp32",
            **rates,
        }


class _Output:
    """Prints text as it comes, or all texts at the end where they would mix."""

    def __init__(
        self,
        command: Command,
        tokenizer: PromptTokenizer | None,
        prompt: Sequence[int],
        results: list[Generated],
        stop_ids: set[int],
    ) -> None:
        from apr.data.text_stream import TextStream

        self.results, self._stop_ids = results, stop_ids
        self._streams: list[TextStream] = []
        if tokenizer is not None:
            self._streams = [TextStream(tokenizer.decode, prompt, command.stop) for _ in results]
        self._live = not command.json and len(results) == 1
        self._quiet = command.json
        # Text that a model writes must not move the cursor or color the terminal.
        self._escape = sys.stdout.isatty()
        self._wrote = False

    @property
    def texts(self) -> list[str | None]:
        """The text of each sample; None without a tokenizer."""
        return [stream.text for stream in self._streams] or [None] * len(self.results)

    def push(self, index: int) -> bool:
        """Show the last token of a sample, and return whether a stop text ended it."""
        id_ = self.results[index].ids[-1]
        if not self._streams:
            if self._live:
                self._write(f"{' ' if self._wrote else ''}{id_}")
            return False
        stream = self._streams[index]
        if id_ not in self._stop_ids:
            text = stream.push(id_)
            if self._live:
                self._write(text)
        return stream.stopped

    def finish(self) -> None:
        """Show what is left."""
        for stream in self._streams:
            rest = stream.finish()
            if self._live:
                self._write(rest)
        if self._live:
            print(flush=True)
        elif not self._quiet:
            for number, result in enumerate(self.results, 1):
                text = self._streams[number - 1].text if self._streams else " ".join(map(str, result.ids))
                print(f"--- {number} of {len(self.results)}")
                self._write(f"{text}\n")

    def _write(self, text: str) -> None:
        if self._escape:
            text = "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
        self._wrote = True
        print(text, end="", flush=True)
