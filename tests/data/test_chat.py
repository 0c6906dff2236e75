"""Chat templates: transformers' text for the same template, and templates that must not get out."""

import json

import pytest

from apr.data.chat import chat_template, render_chat, special_tokens
from apr.errors import RefusedError

CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": 'What is <b>"é"</b>?'},
    {"role": "assistant", "content": "A letter."},
    {"role": "user", "content": "Why?"},
]
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = """{{ bos_token }}
{% for message in messages %}
    {% if message['role'] == 'system' %}
        {% continue %}
    {% endif %}
    {% if message.role == 'user' %}
[INST] {{ message.content | trim }} [/INST]
    {% else %}
{% generation %} {{ message.content }} {{ eos_token }}{% endgeneration %}
    {% endif %}
{% endfor %}
"""
MODERN = """{%- set ns = namespace(turns=0) -%}
{%- set facts = dict(a=1, b=[1, "<é>"]) -%}
{%- for message in messages -%}
{%- set ns.turns = ns.turns + 1 -%}
{{- loop.index0 ~ message | tojson ~ "\n" -}}
{%- if ns.turns > 3 -%}{%- break -%}{%- endif -%}
{%- endfor -%}
{{ facts | tojson(indent=1) }}{{ strftime_now("%Y") }}{{ tools is none }}{{ pad_token is defined }}
{%- if add_generation_prompt %}go{% endif %}"""
TEMPLATES = {"smollm2": SMOLLM2, "llama2": LLAMA2, "modern": MODERN}


def tokenizer_files(template):
    return {"tokenizer_config.json": json.dumps({"chat_template": template, "bos_token": "<s>",
                                                 "eos_token": {"content": "</s>"}})}  # fmt: skip


@pytest.mark.parametrize("messages", [CONVERSATION, CONVERSATION[-1:]], ids=["four", "one"])
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_text_is_that_of_transformers(template, messages):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(WordLevel({"<s>": 0, "</s>": 1}, unk_token="<s>"))
    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    theirs.chat_template = template
    expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert render_chat("m.apr", {"hf_tokenizer": tokenizer_files(template)}, messages) == expected


def test_the_stamped_template_comes_first_then_the_file_then_the_configuration():
    files = tokenizer_files("configured")
    assert chat_template({"hf_tokenizer": files}) == "configured"
    files["chat_template.jinja"] = "file"
    assert chat_template({"hf_tokenizer": files}) == "file"
    assert chat_template({"hf_tokenizer": files, "chat_template": "stamped"}) == "stamped"
    assert chat_template({}) is None


def test_of_several_templates_the_default_is_used():
    several = [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]
    assert chat_template({"hf_tokenizer": tokenizer_files(several)}) == "b"


def test_special_tokens_of_gguf_are_found_by_id():
    metadata = {"tokenizer.vocabulary": ["<s>", "</s>"], "tokenizer.bos_token_id": 0,
                "tokenizer.eos_token_id": 1, "tokenizer.unknown_token_id": 9}  # fmt: skip
    assert special_tokens(metadata) == {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize(
    ("template", "word"),
    [
        (None, "template"),
        ("{{ raise_exception('roles must alternate') }}", "alternate"),
        ("{% for %}", "template"),
        ("{{ messages[0].content.nothing.more }}", "nothing"),
        ("{{ 1 / 0 }}", "zero"),
        ("{{ messages[9].role + 1 }}", "template"),
        # The sandbox: no way to Python's own objects, and no change of what was passed in.
        ("{{ messages.append(1) }}", "append"),
        ("{{ ''.__class__.__mro__ }}", "__class__"),
        ("{{ raise_exception.__globals__.keys() }}", "__globals__"),
        ("{{ dict.mro() }}", "mro"),
        ("{% set ns = namespace() %}{% set ns.__class__ = 1 %}", "__class__"),
        ("{{ namespace(_a=1) }}", "_a"),
        ("{{ namespace(a=1).__init__.__globals__ }}", "__init__"),
    ],
)
def test_templates_that_cannot_render_are_refused(template, word):
    metadata = {} if template is None else {"chat_template": template}
    with pytest.raises(RefusedError, match=word) as error:
        render_chat("m.apr", metadata, CONVERSATION)
    assert str(error.value).startswith("m.apr: ")
