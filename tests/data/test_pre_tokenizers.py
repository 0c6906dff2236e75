"""The pre-tokenizers of GGUF files: llama.cpp's names, and the ids that llama.cpp gives."""

import pytest
from tests.data.gguf_vocabularies import TEXTS, byte_keys, llama_cpp_ids, write_gguf

from apr.data.pre_tokenizers import PRE_TYPES
from apr.data.tokenizers import load_tokenizer
from apr.errors import UnsupportedError

# From `llama_vocab::impl::load` of llama.cpp: names that stand for one way to split a text.
ALIKE = [
    ("llama-bpe", "llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano"),
    ("gpt-2", "phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert jina-v1-en"),
    ("gpt-2", "jina-v2-code roberta-bpe mpt olmo jais trillion granite-docling exaone4"),
    ("smollm", "starcoder refact command-r codeshell exaone minerva-7b mellum2"),
    ("qwen2", "deepseek-r1-qwen kormo f2llmv2 megrez"),
    ("stablelm2", "hunyuan solar-open grok-2"),
    ("dbrx", "smaug-bpe glm4 chatglm-bpe"),
    ("gpt-4o", "llama4 kanana2 talkie minimax-m2"),
    ("deepseek-v3", "hunyuan-dense joyai-llm hy_v4"),
    ("poro-chat", "bloom gpt3-finnish"),
    ("tiny_aya", "cohere2moe"),
    ("bailingmoe", "bailingmoe2 llada-moe"),
]
# Where the version of llama.cpp that is tested with splits white space before digits in another way than the
# model's own tokenizer.json.
APPROXIMATE = {"tiny_aya"}


def ids_of(path):
    loaded = load_tokenizer(path)
    return [loaded.tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]


@pytest.mark.parametrize(("name", "aliases"), ALIKE)
def test_names_that_llama_cpp_treats_alike_give_the_same_ids(name, aliases, tmp_path):
    expected = ids_of(write_gguf(tmp_path / "a.gguf", byte_keys(name), tensors=False))
    for alias in aliases.split():
        path = write_gguf(tmp_path / "b.gguf", byte_keys(alias), tensors=False)
        assert ids_of(path) == expected, alias


LONG = [pytest.param(name, marks=pytest.mark.long) for name in sorted(PRE_TYPES.keys() - APPROXIMATE)]


@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "deepseek-coder", "falcon", *LONG])
def test_a_pre_tokenizer_gives_the_ids_of_llama_cpp(name, tmp_path):
    pytest.importorskip("xllamacpp", reason="needs llama.cpp: uv pip install xllamacpp")
    path = write_gguf(tmp_path / "m.gguf", byte_keys(name))
    assert ids_of(path) == llama_cpp_ids(path, TEXTS)


@pytest.mark.parametrize("architecture", ["llama", "falcon", "mamba", "bert", "not-known"])
@pytest.mark.parametrize("tensors", [True, False], ids=["model", "vocabulary alone"])
def test_a_tokenizer_is_taken_from_any_gguf(architecture, tensors, tmp_path):
    path = write_gguf(tmp_path / "m.gguf", byte_keys("gpt-2"), architecture=architecture, tensors=tensors)
    expected = ids_of(write_gguf(tmp_path / "e.gguf", byte_keys("gpt-2"), tensors=False))
    assert ids_of(path) == expected
    assert load_tokenizer(path).eos_token == "<|endoftext|>"


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"pre": "kimi-k2"}, "kimi-k2"),
        ({"model": "bert"}, "bert"),
        ({"model": "t5"}, "t5"),
        ({"model": "rwkv"}, "rwkv"),
        ({"model": "none"}, "none"),
    ],
)
def test_another_kind_of_tokenizer_is_refused_by_name(changes, match, tmp_path):
    path = write_gguf(tmp_path / "m.gguf", byte_keys("gpt-2") | changes, tensors=False)
    with pytest.raises(UnsupportedError, match=match):
        load_tokenizer(path)
