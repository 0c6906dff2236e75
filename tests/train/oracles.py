"""Independent computations that runs are compared with, from the specification's words alone."""

from tests.train.conftest import BASE, SEQ

# 8000 ids make 249 windows of 32. The 640 held-out tokens are the last 20 windows; the ids before make 228.
HELD_OUT_START = (249 - 20) * SEQ
TRAIN_WINDOWS = (HELD_OUT_START - 1) // SEQ


def transformers_loss(directory_or_file, windows):
    """Return the mean cross entropy of [n, T + 1] windows, computed by transformers with a file's tensors."""
    import torch
    from transformers import AutoModelForCausalLM

    import apr

    model = AutoModelForCausalLM.from_pretrained(BASE.parent / "hf_qwen2_tied", dtype=torch.float32)
    weights = {
        name: value for name, value in apr.load(directory_or_file).items() if not name.startswith("__")
    }
    missing = model.load_state_dict(weights, strict=False)
    assert missing.missing_keys in ([], ["lm_head.weight"])
    assert not missing.unexpected_keys
    ids = torch.from_numpy(windows)
    with torch.no_grad():
        logits = model(ids[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()


def held_out_windows(folder, start):
    """Return windows cut from the raw file as the specification says."""
    import numpy as np

    ids = np.fromfile(folder / "shard-00000.bin", "<u4").astype(np.int64)[start:]
    count = (len(ids) - 1) // SEQ
    return np.stack([ids[i * SEQ : i * SEQ + SEQ + 1] for i in range(count)])


def reference_order(count, seed):
    """Return the specification's order of windows, computed in plain integers."""
    mask64 = 2**64 - 1

    def mix(z):
        z ^= z >> 30
        z = z * 0xBF58476D1CE4E5B9 & mask64
        z ^= z >> 27
        z = z * 0x94D049BB133111EB & mask64
        return z ^ z >> 31

    half = max(1, ((count - 1).bit_length() + 1) // 2)
    mask, state, keys = 2**half - 1, seed * 0xD1342543DE82EF95 & mask64, []
    for _ in range(8):
        state = state + 0x9E3779B97F4A7C15 & mask64
        keys.append(mix(state))

    def place(p):
        while True:
            left, right = p >> half, p & mask
            for key in keys:
                left, right = right, left ^ (mix(right + key & mask64) & mask)
            p = left << half | right
            if p < count:
                return p

    return [place(p) for p in range(count)]
