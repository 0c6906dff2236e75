"""Files that appear whole or not at all."""

from concurrent.futures import ThreadPoolExecutor

from apr.files import write_atomically


def test_concurrent_writers_of_one_name_take_turns_and_a_leftover_is_replaced(tmp_path):
    path = tmp_path / "a.json"
    (tmp_path / ".a.json.tmp").write_bytes(b"left by a process that was killed" * 100)
    contents = [bytes([65 + n % 26]) * (1000 + n) for n in range(200)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: write_atomically(path, content), contents))
    assert path.read_bytes() in contents
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]
