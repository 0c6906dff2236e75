"""Encoding: the ids of the tokenizers package, the same bytes on every run, no half-written files."""

import json
import os
import re
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from tests.data.directories import edit_json

from apr._core import AtomicFile
from apr.cli import main
from apr.data import ShardDir
from apr.data.encode import encode_corpus
from apr.data.encode_options import EncodeOptions
from apr.errors import FormatError, RefusedError, UsageError

IMPORTED = Path(__file__).parents[1] / "fixtures" / "imported-0.72"
TOKENIZER = IMPORTED / "hf_llama_tied"
EOS = 0
TEXTS = [
    f"def f{i}(x):\n    return x * {i}  # naïve {'wörd ' * (i % 7)}\n" if i % 5 else "" for i in range(60)
]
# Keys of a manifest that two encodings of one corpus may differ in.
VOLATILE = ("elapsed_seconds", "num_workers")


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"content": text}) + "\n" for text in TEXTS))
    return path


@pytest.fixture
def options(corpus, tmp_path):
    def make(name="shards", **changes):
        given = {"corpus": (str(corpus),), "tokenizer": TOKENIZER, "output": tmp_path / name} | changes
        return EncodeOptions(**given)

    return make


def documents():
    """The ids of each text as the tokenizers package gives them."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]


def flat(lists):
    return list(chain.from_iterable(lists))


def stream(directory):
    shards = sorted(directory.glob("*.bin"))
    return np.concatenate([np.fromfile(shard, "<u4") for shard in shards]).tolist()


def snapshot(directory):
    """All of a shard directory but what may differ."""
    manifest = json.loads((directory / "manifest.json").read_text())
    files = {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "manifest.json"}
    return files, [(key, value) for key, value in manifest.items() if key not in VOLATILE]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("none", flat),
        ("after", lambda docs: flat([*d, EOS] for d in docs)),
        ("between", lambda docs: flat([EOS, *d] for d in docs)[1:]),
    ],
)
@pytest.mark.parametrize("shard_tokens", [1, 100, 10_000_000])
def test_ids_are_those_of_the_tokenizer_with_ends_of_text_by_policy(policy, expected, shard_tokens, options):
    made = encode_corpus(options(eos_policy=policy, shard_tokens=shard_tokens))
    assert stream(made.manifest and options().output) == expected(documents())
    assert made.manifest["eos_token_count"] == {"none": 0, "after": 60, "between": 59}[policy]
    assert ShardDir(options().output).total_tokens == made.manifest["total_tokens"]


def test_a_shard_is_closed_after_the_document_that_fills_it(options):
    encode_corpus(options(shard_tokens=100, eos_policy="after"))
    sizes = [path.stat().st_size // 4 for path in sorted(options().output.glob("*.bin"))]
    expected, open_tokens = [], 0
    for ids in documents():
        open_tokens += len(ids) + 1
        if open_tokens >= 100:
            expected.append(open_tokens)
            open_tokens = 0
    assert sizes == expected + [open_tokens] * (open_tokens > 0)
    assert len(sizes) > 5


def test_the_manifest_records_the_encoding(options, corpus):
    import hashlib

    manifest = encode_corpus(options(shard_tokens=100)).manifest
    assert manifest == json.loads((options().output / "manifest.json").read_text())
    digests = [
        hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(options().output.glob("*.bin"))
    ]
    expected = {
        "schema": "pretokenize-bin-v1",
        "complete": True,
        "tokenizer_dir": str(TOKENIZER),
        "tokenizer_sha256": hashlib.sha256((TOKENIZER / "tokenizer.json").read_bytes()).hexdigest(),
        "vocab_size": 512,
        "eos_policy": "between",
        "eos_token_id": EOS,
        "shard_count": len(digests),
        "total_documents": 60,
        "skipped_documents": 0,
        "content_field": "content",
        "normalization": "none",
        "input_format": "jsonl",
        "input_files": [str(corpus)],
        "corpus_roots": [str(corpus)],
        "corpus_sha256": hashlib.sha256("".join(digests).encode()).hexdigest(),
        "seq_length_hint": None,
    }
    assert {key: manifest[key] for key in expected} == expected
    assert "progress" not in manifest
    assert [row["sha256"] for row in manifest["shards"]] == digests


def run_cli(*flags, **environment):
    return subprocess.run(
        [sys.executable, "-m", "apr.tokenize", "encode", *map(str, flags)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_no_byte(workers, options, corpus, tmp_path):
    encode_corpus(options("here", shard_tokens=100))
    flags = ["--corpus", corpus, "--tokenizer", TOKENIZER, "--shard-tokens", 100]
    done = run_cli(*flags, "--output", tmp_path / "there", "--workers", workers)
    assert done.returncode == 0, done.stderr
    assert snapshot(tmp_path / "there") == snapshot(tmp_path / "here")


def test_files_are_written_under_temporary_names(options, monkeypatch):
    opened, replaced = [], []

    def note(event, arguments):
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            opened.append(str(arguments[0]))

    def atomic(path):
        replaced.append(Path(path).name)
        return AtomicFile(path)

    sys.addaudithook(note)
    monkeypatch.setattr("apr.files.AtomicFile", atomic)
    encode_corpus(options(shard_tokens=200))
    assert {"shard-00000.bin", "manifest.json"} <= set(replaced)
    assert not [name for name in opened if str(options().output) in name]


def test_unfinished_shards_are_not_opened(options):
    encode_corpus(options(shard_tokens=200))
    path = options().output / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"complete": False}))
    with pytest.raises(RefusedError, match="--resume"):
        ShardDir(options().output)
    # Killed after it wrote a shard and before it wrote the manifest that counts it.
    edit_json(path.parent, shard_count=1, shards=json.loads(path.read_text())["shards"][:1])
    with pytest.raises(RefusedError, match="--resume"):
        ShardDir(options().output)


def test_resuming_a_complete_encoding_changes_nothing(options):
    encode_corpus(options())
    before = (options().output / "manifest.json").read_bytes()
    assert encode_corpus(options(resume=True)).text_bytes == 0
    assert (options().output / "manifest.json").read_bytes() == before


def replace(corpus):
    """Another text of the same size and time."""
    status = corpus.stat()
    corpus.write_text(corpus.read_text().replace("return", "RETURN"))
    os.utime(corpus, ns=(status.st_atime_ns, status.st_mtime_ns))


def append(corpus):
    corpus.write_text(corpus.read_text() + '{"content": "more"}\n')


def scan_after_changing(shards):
    """The scan keeps what it read in the manifest, which is younger than the corpus then."""
    path = shards / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in manifest.items() if key != "corpus_sha256"}))
    replace(shards.parent / "corpus.jsonl")
    before = path.stat().st_mtime_ns
    assert main(["repair-manifest", str(shards), "--verify"]) == 0
    assert path.stat().st_mtime_ns > before


@pytest.mark.parametrize(
    ("act", "change", "match"),
    [
        (scan_after_changing, {}, r"corpus\.jsonl: changed"),
        (lambda _: None, {"shard_tokens": 201}, "shard_tokens"),
        (lambda shards: append(shards.parent / "corpus.jsonl"), {}, r"corpus\.jsonl: changed"),
        (lambda shards: replace(shards.parent / "corpus.jsonl"), {}, r"corpus\.jsonl: changed"),
        (lambda shards: (shards / "shard-00001.bin").unlink(), {}, "number 1"),
        (lambda shards: max(shards.glob("*.bin")).unlink(), {}, "shard_count"),
        (lambda shards: os.truncate(shards / "shard-00001.bin", 40), {}, "shard-00001"),
    ],
)
def test_resuming_a_complete_encoding_that_differs_is_refused(act, change, match, options):
    encode_corpus(options(shard_tokens=200))
    act(options().output)
    before = snapshot(options().output)
    with pytest.raises(RefusedError, match=match):
        encode_corpus(options(**({"shard_tokens": 200} | change), resume=True))
    assert snapshot(options().output) == before


def test_resuming_with_another_set_of_files_is_refused(options, tmp_path):
    roots = tmp_path / "texts"
    roots.mkdir()
    (roots / "a.txt").write_text("one text\n")
    encode_corpus(options(corpus=(str(roots),)))
    (roots / "b.txt").write_text("")
    with pytest.raises(RefusedError, match=r"b\.txt: added"):
        encode_corpus(options(corpus=(str(roots),), resume=True))


@pytest.mark.parametrize(
    ("act", "match"),
    [
        (lambda path: path.unlink(), r"b\.txt: removed"),
        (lambda path: path.with_name("c.txt").write_text("more"), r"c\.txt: added"),
        (lambda path: path.write_text("changed"), r"b\.txt: changed"),
    ],
    ids=["removed", "added", "changed"],
)
def test_a_changed_file_of_an_unfinished_encoding_is_named(act, match, options, tmp_path):
    roots = tmp_path / "texts"
    roots.mkdir()
    for number in range(20):
        (roots / f"a{number}.txt").write_text(TEXTS[number] or "empty")
    (roots / "b.txt").write_text("the last text\n")
    unfinished(lambda **more: options(corpus=(str(roots),), **more), 50)
    act(roots / "b.txt")
    with pytest.raises(RefusedError, match=match):
        encode_corpus(options(corpus=(str(roots),), shard_tokens=50, resume=True))


def test_a_corpus_of_another_size_is_noticed_without_times(options, corpus):
    encode_corpus(options())
    corpus.write_text(corpus.read_text() + '{"content": "more"}\n')
    for path in options().output.glob("*.bin"):
        os.utime(path, (2**32, 2**32))  # as if the shards were copied afterwards
    with pytest.raises(RefusedError, match="input_bytes"):
        encode_corpus(options(resume=True))


@pytest.mark.parametrize(
    "change", [{"shard_tokens": None, "input_bytes": None, "complete": None}, {"shard_tokens": None}]
)
def test_a_complete_manifest_of_an_older_version_can_be_resumed(change, options):
    encode_corpus(options())
    edit_json(options().output, **change)
    assert encode_corpus(options(resume=True)).text_bytes == 0


def test_an_encoding_that_a_repair_finished_cannot_be_resumed(options):
    encode_corpus(options())
    edit_json(options().output, truncated=True)
    with pytest.raises(RefusedError, match="--force"):
        encode_corpus(options(resume=True))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"shard_tokens": 201}, "shard_tokens was 200"),
        ({"eos_policy": "after"}, "eos_policy was 'between'"),
        ({"normalization": "nfc"}, "normalization was 'none'"),
        ({"eos_token": "!"}, "eos_token_id was 0"),
        ({}, r"corpus\.jsonl: changed"),
    ],
)
def test_an_unfinished_encoding_is_resumed_only_with_the_same_options(change, match, options, corpus):
    unfinished(options, 200)
    if not change:
        append(corpus)
    with pytest.raises(RefusedError, match=match):
        encode_corpus(options(**({"shard_tokens": 200} | change), resume=True))


def unfinished(options, shard_tokens):
    """The manifest of an encoding that was interrupted after its second shard, and its path."""

    def interrupt(progress):
        if progress.shards > 1:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("apr.data.corpus.BATCH_BYTES", 500)
        with pytest.raises(KeyboardInterrupt):
            encode_corpus(options(shard_tokens=shard_tokens), interrupt)
    path = options().output / "manifest.json"
    return json.loads(path.read_text()), path


def test_every_key_of_an_unfinished_manifest_is_checked(options):
    manifest, path = unfinished(options, 200)
    encode_corpus(options("whole", shard_tokens=200))
    first, *rest = manifest["shards"]
    progress = manifest["progress"]
    tokens, found = manifest["total_tokens"], manifest["total_documents"]
    more = [{**first, "tokens": first["tokens"] + 1}, *rest]
    acts = [
        ("total_documents", {"total_documents": None}),
        ("total_documents", {"total_documents": found + 1}),
        ("total_tokens", {"total_tokens": float(tokens)}),
        ("total_tokens", {"total_tokens": tokens + 1}),
        ("shard_count", {"shard_count": 1}),
        ("skipped_documents", {"skipped_documents": -1}),
        ("elapsed_seconds", {"elapsed_seconds": "1"}),
        (r"shards\[0\].documents", {"shards": [{**first, "documents": True}, *rest]}),
        ("shard-00000.bin", {"shards": more, "total_tokens": tokens + 1}),
        ("shards", {"shards": [1, *rest]}),
        ("progress", {"progress": progress | {"options": None}}),
        *((r"progress\.place", {"progress": progress | {"place": p}}) for p in ([0, 1], [0, 1, -1], 1)),
    ]
    for key, change in acts:
        path.write_text(json.dumps({k: v for k, v in (manifest | change).items() if v is not None}))
        with pytest.raises(RefusedError, match=f"manifest.json: .*{key} "):
            encode_corpus(options(shard_tokens=200, resume=True))
    path.write_text(json.dumps(manifest))
    encode_corpus(options(shard_tokens=200, resume=True))
    assert snapshot(path.parent) == snapshot(options("whole").output)


def test_existing_shards_are_replaced_only_with_force(options):
    encode_corpus(options())
    before = snapshot(options().output)
    with pytest.raises(RefusedError, match="--force"):
        encode_corpus(options(eos_policy="none"))
    assert snapshot(options().output) == before
    encode_corpus(options(eos_policy="none", force=True))
    assert stream(options().output) == flat(documents())


def word_level(directory, content):
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel(content, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    directory.mkdir()
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def test_a_vocabulary_that_does_not_know_the_text_is_refused_before_writing(options, tmp_path):
    wrong = word_level(tmp_path / "wrong", {"<unk>": 0, "def": 1, "<|endoftext|>": 2})
    with pytest.raises(RefusedError, match="unknown"):
        encode_corpus(options(tokenizer=wrong))
    assert not options().output.exists()


@pytest.mark.parametrize("late", [False, True])
def test_a_tokenizer_whose_own_unknown_token_is_missing_is_named(late, options, tmp_path):
    # Late: the sample, which is the start of the file, contains only known words.
    texts = [*(["def"] * 20_000 if late else []), "other"]
    (tmp_path / "words.jsonl").write_text("".join(json.dumps({"content": text}) + "\n" for text in texts))
    broken = word_level(tmp_path / "broken", {"def": 1, "<|endoftext|>": 2})
    with pytest.raises(FormatError, match=r"broken/.*WordLevel"):
        encode_corpus(options(tokenizer=broken, corpus=(str(tmp_path / "words.jsonl"),)))


def test_a_tokenizer_that_loses_text_is_refused_before_writing(options, tmp_path):
    found = sorted({word for text in TEXTS for word in re.findall(r"\w+|[^\w\s]+", text)})
    words = {word: id_ for id_, word in enumerate(found)}
    lossy = word_level(tmp_path / "lossy", words | {"<unk>": len(words), "<|endoftext|>": len(words) + 1})
    with pytest.raises(RefusedError, match="does not preserve"):
        encode_corpus(options(tokenizer=lossy))
    assert not options().output.exists()


def test_a_byte_level_vocabulary_taken_for_hex_is_refused(options, tmp_path):
    # An encoder that looked for hex keys in a byte-level vocabulary once made a corpus 99.99 % <unk>.
    words = json.loads((TOKENIZER / "tokenizer.json").read_text())["model"]["vocab"]
    from tokenizers import Regex, Tokenizer, models, normalizers

    tokenizer = Tokenizer(models.BPE(words | {"<unk>": 512}, [], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(Regex("[a-z ]"), "\u4e00")
    (tmp_path / "hexed").mkdir()
    tokenizer.save(str(tmp_path / "hexed" / "tokenizer.json"))
    with pytest.raises(RefusedError, match="unknown"):
        encode_corpus(options(tokenizer=tmp_path / "hexed"))


def test_an_unknown_end_of_text_is_wrong_usage_unless_the_policy_is_none(options, tmp_path):
    from tokenizers.pre_tokenizers import ByteLevel

    bare = tmp_path / "bare"
    bare.mkdir()
    letters = sorted(ByteLevel.alphabet())
    (bare / "vocab.json").write_text(json.dumps({letter: id_ for id_, letter in enumerate(letters)}))
    (bare / "merges.txt").write_text("")
    with pytest.raises(UsageError, match="--eos-token"):
        encode_corpus(options(tokenizer=bare))
    assert encode_corpus(options(tokenizer=bare, eos_policy="none")).manifest["eos_token_id"] is None


@pytest.mark.parametrize("change", [{"shard_tokens": 0}, {"workers": 0}])
def test_sizes_below_one_are_wrong_usage(change, options):
    with pytest.raises(UsageError, match="at least 1"):
        encode_corpus(options(**change))


def test_normalization_is_applied_before_encoding(options, tmp_path):
    (tmp_path / "a.txt").write_text("e\u0301")
    (tmp_path / "b.txt").write_text("\u00e9")
    made = [
        encode_corpus(options(f"{name}-{form}", corpus=(str(tmp_path / f"{name}.txt"),), normalization=form))
        for name, form in (("a", "nfc"), ("b", "none"), ("a", "none"))
    ]
    nfc, composed, plain = (stream(Path(tmp_path / name)) for name in ("a-nfc", "b-none", "a-none"))
    assert nfc == composed != plain
    assert made[0].manifest["normalization"] == "nfc"


def test_invalid_documents_are_skipped_and_counted_or_refused_with_strict(options, corpus):
    corpus.write_text(corpus.read_text() + '{"text": "x"}\nnonsense\n')
    made = encode_corpus(options())
    assert made.manifest["skipped_documents"] == 2
    assert made.manifest["total_documents"] == 60
    assert [item.name for item in made.skipped] == [f"{corpus}:61", f"{corpus}:62"]
    with pytest.raises(RefusedError, match=r"corpus\.jsonl:61: "):
        encode_corpus(options("strict", strict=True))


def test_a_corpus_without_text_leaves_no_shards(options, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(RefusedError, match=r"empty\.txt"):
        encode_corpus(options(corpus=(str(tmp_path / "empty.txt"),)))
    assert not options().output.exists()


def test_progress_ends_at_the_size_of_the_corpus(options, corpus):
    seen = []
    encode_corpus(options(), seen.append)
    assert (seen[-1].read, seen[-1].total) == (corpus.stat().st_size, corpus.stat().st_size)
    assert seen[-1].text == sum(len(text.encode()) for text in TEXTS)


@pytest.mark.parametrize(
    "name", ["shard-old-backup.bin", "shard-7.bin", "shard-00099.bin/", "shard-00099.bin@"]
)
@pytest.mark.parametrize("flag", [{"force": True}, {"resume": True}, {}], ids=str)
def test_other_bin_files_are_refused_before_anything_is_removed(name, flag, options):
    encode_corpus(options(shard_tokens=100))
    output = options().output
    odd = output / name.rstrip("/@")
    if name.endswith("/"):
        odd.mkdir()
    elif name.endswith("@"):
        odd.symlink_to("shard-00000.bin")
    else:
        odd.write_bytes(b"kept")
    before = sorted(path.name for path in output.iterdir()), (output / "manifest.json").read_bytes()
    with pytest.raises(RefusedError, match=odd.name):
        encode_corpus(options(shard_tokens=100, **flag))
    assert (sorted(path.name for path in output.iterdir()), (output / "manifest.json").read_bytes()) == before


def test_a_bin_file_that_appears_meanwhile_is_not_removed(options, monkeypatch):
    encode_corpus(options(shard_tokens=100))
    output = options().output

    def meanwhile(*_):
        (output / "shard-old-backup.bin").write_bytes(b"kept")

    monkeypatch.setattr("apr.data.encoding.text_loss", meanwhile)
    with pytest.raises(RefusedError, match=r"shard-old-backup\.bin"):
        encode_corpus(options(shard_tokens=100, force=True))
    assert {"manifest.json", "shard-00000.bin", "shard-old-backup.bin"} <= {p.name for p in output.iterdir()}


def test_a_tokenizer_of_a_known_kind_is_not_read_by_the_library(options, tmp_path):
    """The library takes longer to read a vocabulary of 150,000 tokens than the encoding of 50 MB."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    made.save(str(tmp_path / "tokenizer.json"))
    given = options(tokenizer=tmp_path / "tokenizer.json")
    code = (
        "import sys; from pathlib import Path; from apr.data import EncodeOptions, encode_corpus; "
        f"encode_corpus(EncodeOptions({given.corpus!r}, Path({str(given.tokenizer)!r}), "
        f"Path({str(given.output)!r}), eos_policy='none')); sys.exit('tokenizers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    shards = sorted(given.output.glob("*.bin"))
    ids = [made.encode(text, add_special_tokens=False).ids for text in TEXTS]
    assert flat(np.fromfile(shard, "<u4").tolist() for shard in shards) == flat(ids)
