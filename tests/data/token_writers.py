"""Token files as other tools write them, put together byte by byte from the formats' descriptions."""

import csv
import gzip
import struct

import numpy as np


def nanogpt(path, documents, dtype="<u2"):
    """`np.array(ids, dtype=np.uint16).tofile(path)`: ids and nothing else."""
    np.concatenate([np.asarray(ids, dtype) for ids in documents]).tofile(path)
    return path


def llmc(path, documents, *, llama=False):
    """A header of 256 words (magic, version, number of ids), then the ids."""
    ids = [id_ for document in documents for id_ in document]
    header = struct.pack("<3i", *((20240801, 7) if llama else (20240520, 1)), len(ids)).ljust(1024, b"\0")
    path.write_bytes(header + np.asarray(ids, "<u4" if llama else "<u2").tobytes())
    return path


def datatrove(path, documents, *, item=2, index=True, metadata="tok|{item}\n{count}\n1.00 kT"):
    """Ids, and beside them the ends of documents (64 bits each) and three lines about them."""
    ends = np.cumsum([len(ids) for ids in documents])
    path.write_bytes(b"".join(np.asarray(ids, f"<u{item}").tobytes() for ids in documents))
    if index:
        path.with_name(path.name + ".index").write_bytes(struct.pack(f"<{len(ends)}Q", *ends))
    if metadata:
        path.with_name(path.name + ".metadata").write_text(metadata.format(item=item, count=ends[-1]))
    return path


MEGATRON_CODES = {"u1": 1, "i1": 2, "<i2": 3, "<i4": 4, "<i8": 5, "<f8": 6, "<f4": 7, "<u2": 8}


def megatron(path, documents, dtype="<u2", *, sentences=1, modes=None):
    """Ids, and an index: lengths and byte positions of sequences, and the first sequence of each document."""
    sequences = [part for ids in documents for part in np.array_split(np.asarray(ids), sentences)]
    lengths = [len(part) for part in sequences]
    width = np.dtype(dtype).itemsize
    pointers = [width * sum(lengths[:n]) for n in range(len(lengths))]
    firsts = [n * sentences for n in range(len(documents) + 1)]
    index = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, MEGATRON_CODES[dtype], len(lengths), len(firsts))
    index += struct.pack(f"<{len(lengths)}i", *lengths) + struct.pack(f"<{len(pointers)}q", *pointers)
    index += struct.pack(f"<{len(firsts)}q", *firsts)
    if modes is not None:
        index += bytes([modes]) * len(lengths)
    path.with_suffix(".idx").write_bytes(index)
    path.write_bytes(b"".join(part.astype(dtype).tobytes() for part in sequences))
    return path


def dolma(path, documents, dtype="<u2", *, listing=True, listed=None):
    """`np.memmap` under the name of an array, and a compressed table of the documents beside it."""
    array = np.concatenate([np.asarray(ids, dtype) for ids in documents])
    mapped = np.memmap(path, dtype, "w+", shape=array.shape)
    mapped[:] = array
    mapped.flush()
    if listing:
        with gzip.open(path.with_name(path.name.removesuffix(".npy") + ".csv.gz"), "wt", newline="") as file:
            start = 0
            for n, ids in enumerate(documents[:listed]):
                csv.writer(file).writerow([start, start + len(ids), f"id,{n}", "s3://a/b.json.gz", n])
                start += len(ids)
    return path


def npy(path, documents, dtype="<i8"):
    """What `numpy.save` writes."""
    np.save(path, np.concatenate([np.asarray(ids) for ids in documents]).astype(dtype))
    return path


# The writer of each format, and a name of its file.
WRITERS = {
    "nanogpt": (nanogpt, "a.bin"),
    "llm.c": (llmc, "a.bin"),
    "datatrove": (datatrove, "a.ds"),
    "megatron": (megatron, "a.bin"),
    "dolma": (dolma, "a.npy"),
    "npy": (npy, "a.npy"),
}
