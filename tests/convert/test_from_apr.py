"""From .apr to .apr or safetensors, every tensor is kept, training state included."""

import pytest
import torch

import apr
from apr.cli import main


def test_several_apr_files_become_one_and_one_becomes_several(tmp_path, data, capsys):
    one = tmp_path / "one.apr"
    source = data / "aprender-0.72" / "every_dtype.apr"
    assert main(["convert", str(source), str(one)]) == 0
    assert apr.diff(source, one).same
    with apr.load(source) as a, apr.load(one) as b:
        assert {name: (a.info(name).dtype, bytes(a.raw(name))) for name in a} == {
            name: (b.info(name).dtype, bytes(b.raw(name))) for name in b
        }  # quantized tensors are as they were stored
    index = tmp_path / "several" / "model.apr.index.json"
    assert main(["convert", str(one), str(index), "--max-shard-size", "500"]) == 0
    assert len(list(index.parent.glob("*.apr"))) > 2
    assert apr.diff(one, index).same
    back = tmp_path / "back.apr"
    assert main(["convert", str(index.parent), str(back)]) == 0
    assert back.read_bytes() == one.read_bytes()
    capsys.readouterr()
    shard = next(index.parent.glob("model-00002-of-*.apr"))
    assert main(["convert", str(index), str(shard)]) == 2
    assert str(shard) in capsys.readouterr().err
    assert apr.verify(index).ok


@pytest.mark.parametrize("keep", [False, True])
def test_the_dtype_applies_to_every_weight_but_not_to_training_state(keep, tmp_path, capsys):
    state = "__training__.optimizer.m.a"
    values = torch.linspace(-1, 1, 512).reshape(2, 256)
    tensors = {"a": values, "i": torch.arange(3), "q": apr.quantize(values, "q8"), state: values}
    apr.save(tensors, tmp_path / "a.apr", {"hf_tokenizer": {}, "tokenizer.x": 1, "y": 2})
    flags = ["--dtype", "bf16", "--no-tokenizer", *(["--keep-quantized"] if keep else [])]
    assert main(["convert", str(tmp_path / "a.apr"), str(tmp_path / "b.apr"), *flags]) == 0
    assert "training state" in capsys.readouterr().err
    with apr.load(tmp_path / "a.apr") as a, apr.load(tmp_path / "b.apr") as b:
        assert [b.info(name).dtype for name in b] == ["f32", "bf16", "i64", "q8" if keep else "bf16"]
        assert torch.equal(b["q"].float(), a["q"] if keep else a["q"].bfloat16().float())
        assert torch.equal(b["a"], values.bfloat16())
        assert torch.equal(b[state], values)
        assert dict(b.metadata) == {"y": 2}
    assert main(["convert", str(tmp_path / "a.apr"), str(tmp_path / "c.safetensors")]) == 0
    assert "training state" in capsys.readouterr().err


def test_a_payload_without_described_tensors_is_refused(tmp_path, data, capsys):
    """Such a v1 file has no tensors, and would be an empty model in any other format."""
    source = data / "aprender-0.72" / "v1_kmeans.apr"
    for target in ("a.safetensors", "b.apr", "hf"):
        assert main(["convert", str(source), str(tmp_path / target)]) == 4
        (line,) = capsys.readouterr().err.splitlines()
        assert str(source) in line
    assert list(tmp_path.iterdir()) == []
