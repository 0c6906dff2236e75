"""Every tensor type of a GGUF file is read; damaged, truncated and big-endian files are refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.gguf.models import DATA, convert, write_gguf


def test_every_type_that_the_package_dequantizes_is_converted(tmp_path):
    import gguf

    import apr

    rng = np.random.default_rng(1)
    read = []
    for kind in gguf.GGMLQuantizationType:
        size, nbytes = gguf.GGML_QUANT_SIZES[kind]
        blocks = rng.integers(0, 256, (4, 256 // size * nbytes), np.uint8)
        try:
            with np.errstate(all="ignore"):
                expected = gguf.dequantize(blocks, kind)
        except NotImplementedError:
            continue
        if size == 1:
            continue  # not quantized
        path = write_gguf(tmp_path / "m.gguf", tensors=[("token_embd.weight", blocks, kind)])
        with np.errstate(all="ignore"):
            assert convert(path, tmp_path / "m.apr", "--allow-mismatch") == 0
        with apr.load(tmp_path / "m.apr") as file:
            assert file.numpy("model.embed_tokens.weight").tobytes() == expected.astype("<f4").tobytes(), kind
        read.append(kind.name)
    assert len(read) >= 20


@pytest.mark.parametrize("size", [0, 3, 4, 20, 200, 5000, 30000])
def test_a_truncated_file_exits_4_and_leaves_nothing(size, tmp_path, capsys):
    source = tmp_path / "cut.gguf"
    source.write_bytes((DATA / "llama_tied.gguf").read_bytes()[:size])
    assert convert(source, tmp_path / "m.apr") == 4
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["cut.gguf"]


def test_a_big_endian_file_is_refused(tmp_path, capsys):
    import gguf

    source = write_gguf(tmp_path / "m.gguf", endianess=gguf.GGUFEndian.BIG)
    assert convert(source, tmp_path / "m.apr") == 4
    assert "big-endian" in capsys.readouterr().err
    assert not (tmp_path / "m.apr").exists()


@given(
    st.lists(st.tuples(st.floats(0, 1), st.sampled_from([0, 1, 0x7F, 0x80, 0xFF])), min_size=1, max_size=4),
    st.sampled_from([64, 2000, 20_000]),
)
def test_any_damage_is_converted_or_refused_in_one_line(tmp_path, changes, within):
    import apr
    from apr.convert import convert

    content = bytearray((DATA / "llama_tied.gguf").read_bytes())
    for where, byte in changes:
        content[int(where * within)] = byte
    (tmp_path / "m.gguf").write_bytes(content)
    try:
        convert(tmp_path / "m.gguf", tmp_path / "m.apr")
    except apr.AprError as error:
        assert str(tmp_path / "m.gguf") in str(error)
    else:
        assert apr.verify(tmp_path / "m.apr").ok
