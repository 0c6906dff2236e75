"""A checkpoint counts only once it has been read back."""

from tests.train.conftest import flipped


def test_a_checkpoint_that_does_not_read_back_prunes_nothing(options, train, monkeypatch, tmp_path):
    """A disk that returns another bit than was written."""
    from apr.train.checkpoint import snapshot

    write = snapshot.write

    def writing(path, *arguments):
        write(path, *arguments)
        if path.name == "epoch-001.apr":
            path.write_bytes(flipped(path.read_bytes()))

    monkeypatch.setattr(snapshot, "write", writing)
    result = train(options(keep=1))
    assert (result.status, result.last_checkpoint) == ("FAILED", "ckpt/epoch-000.apr")
    assert "epoch-001.apr" in result.detail
    assert (tmp_path / "run" / "ckpt" / "epoch-000.apr").exists()
    assert not (tmp_path / "run" / "ckpt" / "epoch-001.metadata.json").exists()
