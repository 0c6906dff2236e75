"""GGUF files with vocabularies that tell pre-tokenizers apart, and what llama.cpp makes of them."""

import json
from functools import cache
from pathlib import Path

import gguf
from tests.gguf.models import add_key
from tokenizers import Tokenizer, models, trainers
from tokenizers import pre_tokenizers as pre

from apr.convert.check_gguf import run_llama_cpp

SOURCE = Path(__file__).parents[1] / "fixtures" / "imported-0.72" / "llama_tied.gguf"
ROWS = 512
PROBE = (
    "I'm sure they'LL say We've  seen\tit\n\n\n  12345 times, iPhone15Pro's 3.14159/2 \r\n"
    "HTTPServer HeLLo wORLD x=[1,22,333,4444];\n\t\treturn -1;  // ok/\n/path/to\n"
    "naïve café Ünïcödé ДОБРЫЙ день 你好世界\u3002ひらがな ½ ²³ 🚀 ...!!! ___ 'tis end   \n 1,000,000 "
    "(a|b) <x>=$5^2~`c`+1 x  \n\n y\n"
)
TEXTS = [
    PROBE,
    " 123 45 6789 1234567",
    "x  y   z\n\n\n",
    "don't DON'T 'S",
    "a\r\n\r\nb  \r\n",
    "日本語テスト、漢字",
]


@cache
def byte_model():
    """A vocabulary whose merges reach across every cut, as a tokenizer.json has it."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre.ByteLevel(add_prefix_space=False, use_regex=False)
    made.train_from_iterator(
        [PROBE] * 4,
        trainers.BpeTrainer(
            vocab_size=ROWS - 1, initial_alphabet=pre.ByteLevel.alphabet(), show_progress=False
        ),
    )
    return json.loads(made.to_str())["model"]


def byte_keys(pre_type):
    """The tokenizer's keys of a byte-level vocabulary; id 0 ends a text."""
    model = byte_model()
    tokens = ["<|endoftext|>", *sorted(model["vocab"], key=model["vocab"].get)]
    return {
        "model": "gpt2",
        "pre": pre_type,
        "tokens": tokens + [f"[PAD{id_}]" for id_ in range(len(tokens), ROWS)],
        "token_type": [3, *[1] * (len(tokens) - 1), *[5] * (ROWS - len(tokens))],
        "merges": [" ".join(merge) for merge in model["merges"]],
        "eos_token_id": 0,
        "add_bos_token": False,
    }


def write_gguf(path, keys, *, architecture="llama", tensors=True):
    """Write a model of 512 ids with other keys for its tokenizer; without tensors, a vocabulary alone."""
    reader, writer = gguf.GGUFReader(SOURCE), gguf.GGUFWriter(path, architecture)
    for key, field in reader.fields.items():
        if not key.startswith(("GGUF.", "tokenizer.")) and key != "general.architecture" and tensors:
            writer.add_key_value(key, field.contents(), field.types[0])
    for key, value in keys.items():
        add_key(writer, f"tokenizer.ggml.{key}", value)
    for tensor in reader.tensors if tensors else ():
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def llama_cpp_ids(path, texts):
    """The ids that llama.cpp gives texts."""
    done = run_llama_cpp(path, [[1, 2]], [2], top=1, plain=1, texts=texts)
    done.check_returncode()
    return json.loads(done.stdout)["ids"]
