"""Transformers loads the directories that are written, with the same logits."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.convert.models import (
    IMPORTED,
    MODELS,
    changed,
    check_logits,
    logits,
    logits_of_ours,
    resaved,
    sharded,
    transformers_model,
)

import apr
from apr.cli import main
from apr.convert import ConvertOptions, convert
from apr.errors import RefusedError, UsageError, WeightsError


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back_gives_identical_logits_and_files(name, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(IMPORTED / f"hf_{name}", source)
    (source / "generation_config.json").write_text('{"eos_token_id": 0, "temperature": 0.7}')
    convert(source, tmp_path / "m.apr")
    assert apr.verify(tmp_path / "m.apr").ok
    convert(tmp_path / "m.apr", tmp_path / "back")
    assert torch.equal(logits(transformers_model(source)), logits(transformers_model(tmp_path / "back")))
    for text in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "back" / text).read_bytes() == (source / text).read_bytes()
    for facts in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "back" / facts).read_text()) == json.loads((source / facts).read_text())
    assert (tmp_path / "back" / "model.safetensors").read_bytes()[8:] == (
        source / "model.safetensors"
    ).read_bytes()[8:]


@pytest.mark.parametrize("path", sorted(IMPORTED.glob("*.apr")), ids=lambda path: path.stem)
def test_every_file_of_the_importer_becomes_a_directory_with_its_logits(path, tmp_path):
    from apr.model import Decoder

    convert(path, tmp_path / "hf")
    model = transformers_model(tmp_path / "hf")
    name = path.stem.removeprefix("from_safetensors_").removeprefix("from_gguf_")
    plain = name.rsplit("_", 1)[0] if name.endswith(("int8", "int4", "fp16")) else name
    if name == plain:
        check_logits(model, IMPORTED / f"{plain}.logits.json")
    # Quantized weights have logits of their own: those of the same file in our decoder.
    ours = logits_of_ours(Decoder.from_apr(path))
    assert torch.allclose(logits(model), ours, atol=1e-4, rtol=0)
    tokenizer = json.loads((tmp_path / "hf" / "tokenizer.json").read_text())
    assert len(tokenizer["model"]["vocab"]) == 512


@pytest.mark.parametrize("name", MODELS)
def test_gguf_through_apr_is_what_transformers_saved(name, tmp_path):
    convert(IMPORTED / f"{name}.gguf", tmp_path / "m.apr")
    convert(tmp_path / "m.apr", tmp_path / "hf")
    assert torch.equal(
        logits(transformers_model(IMPORTED / f"hf_{name}")), logits(transformers_model(tmp_path / "hf"))
    )


def test_models_in_several_files_are_read_and_written(tmp_path):
    source = tmp_path / "sharded"
    sharded(IMPORTED / "hf_qwen2_untied", source)
    assert len(list(source.glob("*.safetensors"))) > 1
    convert(source, tmp_path / "several", ConvertOptions(max_shard_size=150_000))
    files = sorted(path.name for path in (tmp_path / "several").iterdir())
    count = len(files) - 1
    assert files == [
        *(f"model-{i:05}-of-{count:05}.apr" for i in range(1, count + 1)),
        "model.apr.index.json",
    ]
    assert count > 2
    with apr.load(tmp_path / "several") as file:
        assert file.verify().ok
        assert "sharding" not in file.metadata
        convert(source, tmp_path / "one.apr")
        assert file.metadata == apr.load(tmp_path / "one.apr").metadata
        first, *others = file.files
        assert dict(first.metadata) == {**file.metadata, "sharding": first.metadata["sharding"]}
        for place, other in enumerate(others, 1):
            assert other.metadata["sharding"]["shard_index"] == place
            assert other.metadata["hidden_size"] == file.metadata["hidden_size"]
            assert not {"hf_tokenizer", "hf_config", "tokenizer.vocabulary"} & set(other.metadata)
    for target in (tmp_path / "several", tmp_path / "several" / "model.apr.index.json"):
        convert(target, tmp_path / "hf", ConvertOptions(max_shard_size=150_000, force=True))
        assert (tmp_path / "hf" / "model.safetensors.index.json").exists()
        assert torch.equal(logits(transformers_model(source)), logits(transformers_model(tmp_path / "hf")))


def test_a_checkpoint_of_a_run_becomes_a_transformers_model(tmp_path):
    from apr.container.metadata import HF_CONFIG
    from apr.model import Decoder

    convert(IMPORTED / "hf_llama_tied", tmp_path / "m.apr")
    with apr.load(tmp_path / "m.apr") as file:
        metadata = {key: value for key, value in file.metadata.items() if key != HF_CONFIG}
        tensors = dict(file) | {"__training__.optimizer.m.x": torch.zeros(3)}
        apr.save(tensors, tmp_path / "checkpoint.apr", metadata | {"training": {"state": {}}})
    convert(tmp_path / "checkpoint.apr", tmp_path / "hf", ConvertOptions(dtype="bf16"))
    model = transformers_model(tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"
    ours = Decoder.from_apr(tmp_path / "m.apr").bfloat16().float()
    assert torch.allclose(logits(model), logits_of_ours(ours), atol=1e-4, rtol=0)


def test_an_unsupported_family_is_stored_and_written_back(tmp_path, capsys):
    copy = changed(
        IMPORTED / "hf_llama_untied", tmp_path, model_type="cohere", architectures=["CohereForCausalLM"]
    )
    assert main(["convert", str(copy), str(tmp_path / "m.apr")]) == 0
    assert "apr cannot train it" in capsys.readouterr().err
    convert(tmp_path / "m.apr", tmp_path / "hf")
    assert json.loads((copy / "config.json").read_text()) == json.loads(
        (tmp_path / "hf/config.json").read_text()
    )
    before, after = (load_file(path / "model.safetensors") for path in (copy, tmp_path / "hf"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def multimodal(directory, kind):
    """A tiny model of text and images with transformers' class."""
    from transformers import (
        CLIPVisionConfig,
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    text = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 64,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 16, "patch_size": 8,
    }  # fmt: skip
    if kind == "gemma3":
        config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
        model = Gemma3ForConditionalGeneration(config)
    else:
        config = LlavaConfig(
            text_config={**text, "model_type": "llama"}, vision_config=CLIPVisionConfig(**vision)
        )
        model = LlavaForConditionalGeneration(config)
    model.save_pretrained(directory)
    return with_side_files(directory)


@pytest.mark.parametrize(("kind", "part"), [("gemma3", "gemma3_text"), ("llava", "llama")])
def test_a_multimodal_directory_is_stored_and_its_text_part_is_named(kind, part, tmp_path, run):
    source = multimodal(tmp_path / "source", kind)
    code, _, errors = run("convert", source, tmp_path / "m.apr")
    assert code == 0
    note = errors.splitlines()[-1]
    assert "multimodal" in note
    assert part in note
    convert(tmp_path / "m.apr", tmp_path / "back")
    before, after = (load_file(path / "model.safetensors") for path in (source, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert json.loads((source / "config.json").read_text()) == json.loads(
        (tmp_path / "back/config.json").read_text()
    )
    check_side_files(tmp_path / "back")
    for command in (
        ["generate", tmp_path / "m.apr", "--prompt", "x"],
        ["convert", tmp_path / "m.apr", tmp_path / "m.gguf"],
    ):
        code, _, errors = run(*command)
        assert code == 5
        (line,) = errors.splitlines()
        assert "multimodal" in line


def test_missing_tensors_are_refused_by_name(tmp_path, data):
    with pytest.raises(WeightsError, match=r"6.*q_proj\.bias"):
        convert(data / "aprender-0.72" / "qwen2_biases_lost.apr", tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_biases_stored_as_rows_and_an_empty_head_are_converted(tmp_path, data):
    convert(data / "aprender-0.72" / "qwen2_empty_head_f16.apr", tmp_path / "hf")
    model = transformers_model(tmp_path / "hf")
    check_logits(model, data / "aprender-0.72" / "qwen2_empty_head_f16.logits.json")


Q = "model.layers.0.self_attn.q_proj.weight"


MISFITS = {
    "a name without a dot": ({"tensors": {"foo": torch.zeros(2)}}, "foo"),
    "a scalar under GGUF's name": (
        {"tensors": {"blk.0.attn_q.weight": torch.tensor(1.0)}, "dropped": [Q]},
        "blk.0.attn_q.weight",
    ),
    "neither embedding nor head": ({"dropped": ["model.embed_tokens.weight"]}, "model.embed_tokens.weight"),
    "a tied head of another size": (
        {"tensors": {"lm_head.weight": torch.zeros(512, 32)}, "dropped": ["model.embed_tokens.weight"]},
        "lm_head.weight",
    ),
    "layers without end": ({"num_layers": 10**9}, "num_layers"),
    "a vocabulary without end": ({"vocab_size": 2**62}, "[512, 64]"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_tensors_that_do_not_fit_their_metadata_are_refused_in_one_line(case, tmp_path, capsys):
    changes, says = MISFITS[case]
    source = resaved(tmp_path, **changes)
    assert main(["convert", str(source), str(tmp_path / "hf")]) == (5 if "layers" in case else 6)
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert not (tmp_path / "hf").exists()


def test_changed_metadata_take_precedence_over_the_kept_config(tmp_path):
    source = resaved(tmp_path, rope_theta=5000.0, max_position_embeddings=99)
    convert(source, tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    before = json.loads((IMPORTED / "hf_llama_tied" / "config.json").read_text())
    assert (config["rope_theta"], config["max_position_embeddings"]) == (5000.0, 99)
    assert config["pretraining_tp"] == before["pretraining_tp"]
    model = transformers_model(tmp_path / "hf")
    assert model.config.rope_parameters["rope_theta"] == 5000.0


@pytest.mark.parametrize("keys", [["dtype"], ["torch_dtype"], ["dtype", "torch_dtype"], []])
def test_the_dtype_of_a_config_is_that_of_the_weights_and_no_key_is_added(keys, tmp_path):
    copy = changed(IMPORTED / "hf_llama_tied", tmp_path)
    config = json.loads((copy / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in {"dtype", "torch_dtype"} - set(keys)}
    (copy / "config.json").write_text(json.dumps(config))
    convert(copy, tmp_path / "m.apr")
    convert(tmp_path / "m.apr", tmp_path / "same")
    assert json.loads((tmp_path / "same" / "config.json").read_text()) == config
    convert(tmp_path / "m.apr", tmp_path / "half", ConvertOptions(dtype="bf16"))
    half = json.loads((tmp_path / "half" / "config.json").read_text())
    assert half == config | dict.fromkeys(keys, "bfloat16")


@pytest.mark.parametrize(
    "facts",
    [{"architectures": ["LlamaForSequenceClassification"]}, {"quantization_config": {"quant_method": "awq"}}],
)
def test_other_tensors_with_a_decoders_configuration_are_stored_and_written_back(facts, tmp_path, capsys):
    copy = changed(IMPORTED / "hf_llama_tied", tmp_path, **facts)
    tensors = {"score.weight": torch.rand(2, 64), "layers.0.qweight": torch.arange(4, dtype=torch.int32)}
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    assert main(["convert", str(copy), str(tmp_path / "m.apr")]) == 0
    assert "apr cannot train it" in capsys.readouterr().err
    convert(tmp_path / "m.apr", tmp_path / "hf")
    for name in ("model.safetensors", "config.json"):
        back, before = (tmp_path / "hf" / name).read_bytes(), (copy / name).read_bytes()
        assert back == before if name != "config.json" else json.loads(back) == json.loads(before)


SIDE_FILES = {
    "chat_template.jinja": b"{{ messages }}\r\n",
    "additional_chat_templates/tool_use.jinja": b"{{ tools }}",
    "additional_chat_templates/rag.jinja": "{{ documents }} \u00e9".encode(),
    "special_tokens_map.json": b'{"bos_token": "<|endoftext|>"}',
    "added_tokens.json": b"{}",
    "tokenizer.4.0.0.json": b"{}",
    "processor_config.json": b'{"processor_class": "X"}',
    "preprocessor_config.json": b"{}",
    "chat_template.json": b'{"chat_template": "{{ messages }}"}',
    "vocab.json": b"{}",
    "merges.txt": b"#version: 0.2\n",
    "tiktoken.model": bytes(range(256)),
    "qwen.tiktoken": b"IQ== 0\n",
    "generation_config.json": b'{"eos_token_id": [0, 1], "temperature": 0.7}',
}


def with_side_files(directory):
    for name, content in SIDE_FILES.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(content)
    return directory


def check_side_files(directory):
    for name, content in SIDE_FILES.items():
        assert (directory / name).exists(), name
        written = (directory / name).read_bytes()
        if name == "generation_config.json":
            assert json.loads(written) == json.loads(content)
        else:
            assert written == content, name


@pytest.mark.parametrize("through", ["one file", "several files", "safetensors"])
def test_everything_that_transformers_reads_comes_back(through, tmp_path):
    from transformers import AutoTokenizer, GenerationConfig

    source = with_side_files(changed(IMPORTED / "hf_llama_tied", tmp_path))
    kept = tmp_path / "m.apr"
    if through == "several files":
        kept = tmp_path / "several"
        convert(source, kept, ConvertOptions(max_shard_size=100_000))
    else:
        convert(source, kept)
    if through == "safetensors":
        convert(kept, tmp_path / "m.safetensors")
        convert(tmp_path / "m.safetensors", tmp_path / "again.apr")
        kept = tmp_path / "again.apr"
    result = convert(kept, tmp_path / "back")
    files = [path for path in (tmp_path / "back").rglob("*") if path.is_file()]
    assert result.nbytes == sum(path.stat().st_size for path in files)
    check_side_files(tmp_path / "back")
    before, after = (AutoTokenizer.from_pretrained(path) for path in (source, tmp_path / "back"))
    assert before.chat_template == after.chat_template
    assert set(after.chat_template) == {"default", "tool_use", "rag"}
    assert before.special_tokens_map == after.special_tokens_map
    settings = [GenerationConfig.from_pretrained(path).to_dict() for path in (source, tmp_path / "back")]
    assert settings[0] == settings[1]
    # The directory may be replaced: all in it are files that a conversion writes.
    convert(kept, tmp_path / "back", ConvertOptions(force=True))
    check_side_files(tmp_path / "back")
    (tmp_path / "back/additional_chat_templates/notes.txt").write_text("mine")
    with pytest.raises(RefusedError, match=r"additional_chat_templates/notes\.txt"):
        convert(kept, tmp_path / "back", ConvertOptions(force=True))
    assert (tmp_path / "back/additional_chat_templates/notes.txt").exists()


def test_other_templates_reach_gguf(tmp_path):
    import gguf

    convert(with_side_files(changed(IMPORTED / "hf_llama_tied", tmp_path)), tmp_path / "m.apr")
    convert(tmp_path / "m.apr", tmp_path / "m.gguf", ConvertOptions(check=False))
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert fields["tokenizer.chat_template.tool_use"].contents() == "{{ tools }}"
    assert fields["tokenizer.chat_template"].contents() == "{{ messages }}\r\n"


def test_a_binary_tokenizer_file_is_kept(tmp_path):
    copy = changed(IMPORTED / "hf_llama_tied", tmp_path)
    (copy / "tokenizer.model").write_bytes(bytes(range(256)))
    convert(copy, tmp_path / "m.apr")
    convert(tmp_path / "m.apr", tmp_path / "hf")
    assert (tmp_path / "hf" / "tokenizer.model").read_bytes() == bytes(range(256))
    wrong_files = (
        {"tokenizer.model": {"base64": "?"}},
        {"../x": "text"},
        {"additional_chat_templates/../x.jinja": "text"},
        {"additional_chat_templates/a/b.jinja": "text"},
        {"model.safetensors": "text"},
        {"tokenizer.json": 3},
    )
    for wrong in wrong_files:
        apr.stamp(tmp_path / "m.apr", {"hf_tokenizer": wrong}, tmp_path / "wrong.apr")
        with pytest.raises(RefusedError, match="hf_tokenizer"):
            convert(tmp_path / "wrong.apr", tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_no_tokenizer_leaves_it_out(tmp_path):
    left_out = ConvertOptions(tokenizer=False)
    convert(IMPORTED / "llama_tied.gguf", tmp_path / "m.apr", left_out)
    with apr.load(tmp_path / "m.apr") as file:
        assert not [key for key in file.metadata if key.startswith("tokenizer.")]
    convert(IMPORTED / "from_gguf_llama_tied.apr", tmp_path / "hf", left_out)
    assert sorted(path.name for path in (tmp_path / "hf").iterdir()) == ["config.json", "model.safetensors"]
    with pytest.raises(UsageError, match="--no-tokenizer"):
        convert(tmp_path / "m.apr", tmp_path / "m.safetensors", left_out)


def test_special_tokens_of_gguf_reach_transformers_and_come_back(tmp_path):
    import gguf
    from tests.gguf.models import with_keys
    from transformers import AutoConfig, AutoTokenizer

    ids = {"bos": 3, "eos": 4, "padding": 7, "unknown": 5, "seperator": 8, "mask": 9, "eot": 6, "eom": 10}
    keys = {f"tokenizer.ggml.{name}_token_id": id_ for name, id_ in ids.items()}
    with_keys(IMPORTED / "llama_tied.gguf", tmp_path / "m.gguf", of_architecture=False, **keys)
    convert(tmp_path / "m.gguf", tmp_path / "m.apr")
    convert(tmp_path / "m.apr", tmp_path / "hf")
    config = AutoConfig.from_pretrained(tmp_path / "hf")
    assert (config.bos_token_id, config.pad_token_id, config.eos_token_id) == (3, 7, [4, 6, 10])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (3, 4, 7)
    assert (tokenizer.unk_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id) == (5, 8, 9)
    # Back to GGUF, from the file itself and from the directory.
    convert(tmp_path / "hf", tmp_path / "hf.apr")
    for name in ("m", "hf"):
        convert(tmp_path / f"{name}.apr", tmp_path / f"{name}-back.gguf", ConvertOptions(check=False))
        fields = gguf.GGUFReader(tmp_path / f"{name}-back.gguf").fields
        assert {key: fields[key].contents() for key in keys} == keys, name


def test_the_padding_id_of_config_json_reaches_gguf(tmp_path):
    """Where the tokenizer has no padding token, as Qwen2 base models with one in their configuration."""
    import gguf

    source = changed(IMPORTED / "hf_llama_tied", tmp_path, pad_token_id=11, bos_token_id=3)
    convert(source, tmp_path / "m.apr")
    convert(tmp_path / "m.apr", tmp_path / "m.gguf", ConvertOptions(check=False))
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert fields["tokenizer.ggml.padding_token_id"].contents() == 11
