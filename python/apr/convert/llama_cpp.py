"""Ask llama.cpp for its predictions: `python -m apr.convert.llama_cpp`, with a request on standard input.

It is a process of its own, because llama.cpp ends the process where it finds a file inconsistent, and prints
pages while it loads one.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

# Below this size, a second thread costs more than it computes.
_SMALL = 50_000_000
# Added to the logit of a token, so that it is the one that is generated.
_FORCE = 1e4


def main() -> None:
    """Read a request as JSON, and print the answer as JSON.

    The request has `path`; `prompts`, lists of ids; `first`, the shortest prefix of each that is continued;
    `top`, the number of most likely next tokens to report; `plain`, the id of any token that is whole UTF-8;
    `texts` to tokenize; and `parent`, the process that asks. The answer has `top`, for each prompt a list
    with the [id, log probability] of the most likely tokens after each prefix; and `ids`, those of each text.
    """
    request: dict[str, Any] = json.load(sys.stdin)
    # The library prints to both streams. Standard output must hold the answer alone.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    server = _server(request)
    answer = {
        "top": [
            [_top(server, prompt[:length], request) for length in range(first, len(prompt) + 1)]
            for prompt, first in zip(request["prompts"], request["first"], strict=True)
        ],
        "ids": [_tokenize(server, text) for text in request["texts"]],
    }
    answers.write(json.dumps(answer))
    answers.flush()
    # At the end of the interpreter the server waits for its threads, for up to a second.
    os._exit(0)


def _server(request: dict[str, Any]) -> Any:  # noqa: ANN401 (the package has no stubs)
    from xllamacpp import CommonParams, Server, ggml_type, llama_flash_attn_type

    params = CommonParams()
    params.model.path = request["path"]
    params.n_ctx = 2 * max(len(prompt) for prompt in request["prompts"])
    params.n_parallel, params.n_gpu_layers = 1, 0
    params.warmup = params.fit_params = False
    # All that rounds and can be turned off: what is left is llama.cpp's own product of weights.
    params.cache_type_k = params.cache_type_v = ggml_type.GGML_TYPE_F32
    params.flash_attn_type = llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    # Keep the keys of all positions, so that a longer prefix continues a shorter one.
    params.swa_full = True
    # llama.cpp's threads spin while they wait for one another. With one for each core, a comparison of
    # SmolLM2-135M beside other programs took 161 s of processor time; with one thread and half the positions
    # it took 26 s.
    small = Path(request["path"]).stat().st_size < _SMALL
    threads = 1 if small else max(1, (os.cpu_count() or 1) // 2)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    return Server(params)


def _top(server: Any, prefix: list[int], request: dict[str, Any]) -> list[tuple[int, float]]:  # noqa: ANN401
    """Return the most likely tokens after a prefix, with their log probabilities."""
    if os.getppid() != request["parent"]:  # it was killed, and nobody waits for the answer
        os._exit(1)
    result = server.handle_completions(
        {
            "prompt": prefix,
            "n_predict": 1,
            "temperature": 0,
            "n_probs": request["top"],
            "cache_prompt": True,
            # The server reports nothing about a token that ends within a character. The probabilities that
            # it reports are those before the bias.
            "logit_bias": [[request["plain"], _FORCE]],
        }
    )
    (step,) = result["choices"][0]["logprobs"]["content"]
    return [(token["id"], token["logprob"]) for token in step["top_logprobs"]]


def _tokenize(server: Any, text: str) -> list[int]:  # noqa: ANN401
    body = json.dumps({"content": text, "add_special": True}).encode()
    request = Request(  # noqa: S310 (a server of this process)
        f"{server.listening_address}/tokenize", body, {"Content-Type": "application/json"}
    )
    with urlopen(request) as response:  # noqa: S310
        ids: list[int] = json.load(response)["tokens"]
    return ids


if __name__ == "__main__":
    main()
