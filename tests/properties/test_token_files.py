"""What holds of every token file of another tool, whole or damaged."""

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.data.directories import TOKENIZER
from tests.data.token_writers import WRITERS

from apr.data import ShardDir
from apr.data.manifest import check_manifest
from apr.data.token_files import open_token_file
from apr.data.token_import import ImportOptions, import_tokens
from apr.errors import AprError, RefusedError

EOS = 0
INDEXED = ("datatrove", "megatron", "dolma")
IDS = st.lists(st.integers(0, 511), max_size=40)


@given(
    format_=st.sampled_from(sorted(WRITERS)),
    documents=st.lists(IDS, min_size=1, max_size=12).filter(lambda documents: sum(map(len, documents)) > 7),
    shard_tokens=st.integers(5, 60),
    chunk=st.integers(1, 50),
    insert=st.booleans(),
    stop=st.integers(0, 8),
)
def test_an_import_stopped_anywhere_has_the_ids_of_the_file(
    format_, documents, shard_tokens, chunk, insert, stop, tmp_path_factory
):
    directory = tmp_path_factory.mktemp("tokens")
    write, name = WRITERS[format_]
    insert = insert and format_ in INDEXED
    path = write(directory / name, documents)
    dtype = {"npy": None, "nanogpt": "uint16"}.get(format_)
    output = directory / "shards"

    def interrupt(*_):
        if len(list(output.glob("*.bin"))) >= stop:
            raise KeyboardInterrupt

    def run(on_progress=lambda *_: None, *, resume):
        return import_tokens(
            ImportOptions(
                sources=(path,),
                output=output,
                tokenizer=TOKENIZER,
                dtype=dtype,
                shard_tokens=shard_tokens,
                insert_eos=insert,
                resume=resume,
            ),
            on_progress,
        )

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("apr.data.token_import._CHUNK", chunk)
        with suppress(KeyboardInterrupt):
            run(interrupt, resume=False)
        made = run(resume=output.exists())
    expected = [
        id_ for ids in documents for id_ in [*ids, *([EOS] if insert and ids and ids[-1] != EOS else [])]
    ]
    shards = ShardDir(output)
    assert shards.read(0, shards.total_tokens).tolist() == expected
    assert check_manifest(made.manifest, shards.shards) == []
    assert made.manifest["eos_token_count"] == expected.count(EOS)
    assert all(shard.tokens >= shard_tokens for shard in shards.shards[:-1])
    if format_ in INDEXED:
        assert made.manifest["total_documents"] == len(documents)
        # A shard ends where a document does.
        ends = {0, *np.cumsum([len(ids) + (insert and bool(ids) and ids[-1] != EOS) for ids in documents])}
        assert ends.issuperset(shards.starts())


DOCUMENTS = [[5, 7, 300, 0], [9, 0], [400, 401, 402, 403, 0]] * 5


@given(format_=st.sampled_from(sorted(WRITERS)), data=st.data())
def test_a_damaged_file_is_opened_or_refused_with_its_byte(format_, data, tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokens")
    write, name = WRITERS[format_]
    path = write(directory / name, DOCUMENTS)
    victim = data.draw(st.sampled_from(sorted(directory.iterdir())))
    content = bytearray(victim.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    for _ in range(data.draw(st.integers(0, 3)) if content else 0):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    victim.write_bytes(content)
    try:
        file = open_token_file(path, 512)
    except (AprError, RefusedError) as error:
        assert "\n" not in str(error)
        assert error.path in {str(file) for file in directory.iterdir()}
        assert error.offset is None or 0 <= error.offset <= len(content) or str(victim) != error.path
        return
    # What was opened is read to its end.
    assert file.start + file.count * file.dtype.itemsize <= path.stat().st_size
    if file.ends is not None:
        ends = np.concatenate([np.empty(0, np.int64), *file.ends()])
        assert (np.diff(ends) >= 0).all()
        assert ends[-1] == file.count
