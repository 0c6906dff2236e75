"""One open file in many threads and processes: the same values for each, and nobody waits for ever."""

import os
import pickle
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tests.container.forged import Entry, forge

import apr

GOLDEN = ["every_dtype", "row_padded_k_quants", "qwen2_q4_q8", "qwen2_empty_head_f16"]


def bits(tensor):
    import torch

    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


# Every way to a tensor.
WAYS = {
    "torch": lambda file, name: bits(file[name]),
    "numpy": lambda file, name: file.numpy(name).tobytes(),
    "raw": lambda file, name: bytes(file.raw(name)),
    "slice": lambda file, name: bits(file.slice(name)[...]),
    "to_torch": lambda file, name: bits(file.to_torch(names=[name])[name]),
    "info": lambda file, name: file.info(name),
    "contains": lambda file, name: (name in file, list(file).index(name), len(file)),
    "verify": lambda file, _: file.verify().to_dict(),
}


@pytest.mark.parametrize("golden", GOLDEN)
def test_threads_that_share_a_file_read_the_same_values(golden, data):
    path = data / "aprender-0.72" / f"{golden}.apr"
    names = list(apr.load(path))[:6]
    jobs = [(way, name) for way in WAYS for name in names]
    alone = apr.load(path)
    expected = {job: WAYS[job[0]](alone, job[1]) for job in jobs}
    file, together = apr.load(path), threading.Barrier(8)

    def read(seed):
        order = random.Random(seed).sample(jobs, len(jobs))
        together.wait()
        return {job: WAYS[job[0]](file, job[1]) for job in order}

    with ThreadPoolExecutor(8) as threads:
        for actual in threads.map(read, range(8)):
            assert actual == expected


def test_a_file_closed_by_another_thread_returns_values_or_raises_closed(data):
    path = data / "aprender-0.72" / "every_dtype.apr"
    names = list(apr.load(path))
    expected = {name: apr.load(path).numpy(name).tobytes() for name in names}
    for seed in range(50):
        file, together = apr.load(path), threading.Barrier(2)

        def read(file=file, together=together, seed=seed):
            together.wait()
            actual = {}
            for name in random.Random(seed).sample(names, len(names)):
                try:
                    actual[name] = (file.numpy(name) if seed % 2 else file[name].view(-1)).tobytes()
                except AttributeError:  # torch tensors have no tobytes
                    actual[name] = bits(file[name])
                except ValueError as error:
                    assert "closed" in str(error)
                    break
            return actual

        with ThreadPoolExecutor(1) as thread:
            reading = thread.submit(read)
            together.wait()
            file.close()
            for name, values in reading.result().items():
                assert values == expected[name]


def test_other_threads_run_while_a_file_is_verified(tmp_path):
    path = tmp_path / "holes.apr"
    size = 1 << 30
    content = forge(Entry(dtype=7, dims=(size,), size=size), body=b"")
    with path.open("wb") as file:
        file.write(content[:-4])
        file.truncate(len(content) + size)
    opened, done, steps = apr.load(path), threading.Event(), 0

    def verify():
        report = opened.verify()
        done.set()
        return report

    with ThreadPoolExecutor(1) as thread:
        reading = thread.submit(verify)
        while not done.is_set():
            steps += 1
        assert not reading.result().ok  # the footer is a hole as well
    # Were the interpreter held, it would be free for a few steps before and after alone.
    assert steps > 1000


# Reads a pickled file from its standard input and prints the sum of each tensor.
UNPICKLE = """
import pickle, sys
file = pickle.load(sys.stdin.buffer)
print({name: float(tensor.sum()) for name, tensor in file.items()})
"""


def test_a_pickled_file_is_opened_by_another_process(tmp_path, monkeypatch):
    apr.save({"a": np.arange(10.0), "b": np.ones((3, 3), np.float32)}, tmp_path / "m.apr")
    monkeypatch.chdir(tmp_path)
    file = apr.load("m.apr")
    monkeypatch.chdir("/")
    command = [sys.executable, "-c", UNPICKLE]
    done = subprocess.run(command, input=pickle.dumps(file), capture_output=True, check=True)
    assert done.stdout.decode() == "{'a': 45.0, 'b': 9.0}\n"


# Makes a file large enough for several threads of the core, uses them, forks, and uses them in the child,
# once the parent has closed the file, and in the child's child.
FORK = """
import os, sys, numpy as np, torch, apr
torch.set_num_threads(1)  # as workers of a DataLoader do
path = sys.argv[1]
values = np.linspace(-1, 1, 1 << 22, dtype=np.float32).reshape(64, -1)
apr.save({"a": values, "b": values, "q4": apr.quantize(values, "q4"), "q8": apr.quantize(values, "q8")}, path)

def look(file):
    assert file.verify().ok
    state = file.to_torch()
    for name in file:
        assert torch.equal(file[name], state[name]) and torch.equal(file.slice(name)[...], state[name])
    assert torch.equal(state["a"], torch.from_numpy(values))
    return state["q4"].sum(), state["q8"].sum()

def child(act):
    process = os.fork()
    if process == 0:
        act()
        os._exit(0)
    return process

def wait(process):
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0

def look_again():
    os.close(closed)
    os.read(ready, 1)  # ends when the parent has closed the file
    assert look(file) == expected
    again = path + ".child"
    apr.save({"q": apr.quantize(values, "q4")}, again)
    assert apr.verify(again).ok
    wait(child(lambda: look(file)))

file = apr.load(path, verify="full")
expected = look(file)
ready, closed = os.pipe()
process = child(look_again)
file.close()
os.close(closed)
wait(process)
"""


def test_the_child_of_a_fork_reads_and_writes_with_all_threads(tmp_path):
    command = [sys.executable, "-c", FORK, tmp_path / "m.apr"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


# A data set over a file that is opened before the workers are.
WORKERS = """
import sys, torch, apr
from torch.utils.data import DataLoader, Dataset

class Rows(Dataset):
    def __init__(self, path):
        self.file = apr.load(path, verify="full")
    def __len__(self):
        return 64
    def __getitem__(self, row):
        return self.file.slice("a")[row], self.file["q"][row], self.file["a"][row]

if __name__ == "__main__":
    rows = Rows(sys.argv[1])
    a, q = rows.file["a"].clone(), rows.file["q"].clone()
    loader = DataLoader(rows, batch_size=8, num_workers=2, multiprocessing_context=sys.argv[2])
    for _ in range(2 if sys.argv[2] == "fork" else 1):  # each worker that is spawned loads torch
        batches = iter(loader)
        first = next(batches)
        if sys.argv[2] == "fork":
            rows.file.close()  # the workers have it still
        actual = [torch.cat(parts) for parts in zip(first, *batches)]
        assert torch.equal(actual[0], a) and torch.equal(actual[1], q) and torch.equal(actual[2], a)
        rows.file = apr.load(sys.argv[1])
"""


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_of_a_data_loader_read_a_file_opened_before_them(context, tmp_path):
    path, script = tmp_path / "m.apr", tmp_path / "workers.py"
    values = np.random.default_rng(0).normal(size=(64, 32_768)).astype(np.float32)
    apr.save({"a": values, "q": apr.quantize(values, "q4")}, path)
    script.write_text(WORKERS)
    command = [sys.executable, script, path, context]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
