import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

VOCAB = 512
LN_VOCAB = math.log(VOCAB)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """A run directory as the trainer leaves it; keywords change keys of result.json, or (None) drop them."""

    def make(*, log: str = "step 1\n", first_loss: float | None = None, **changes: object) -> Path:
        import numpy as np

        import apr

        run = tmp_path / "run"
        (run / "ckpt").mkdir(parents=True)
        apr.save({"w": np.arange(6, dtype=np.float32)}, run / "ckpt" / "epoch-000.apr", {"vocab_size": VOCAB})
        result = {
            "exit_code": 0,
            "wall_seconds": 12.5,
            "step0_train_loss": 0.5 * LN_VOCAB,
            "final_val_loss": 0.4 * LN_VOCAB,
            "last_checkpoint": "ckpt/epoch-000.apr",
            "device": "cuda:0",
            "steps_completed": 500,
        } | changes
        (run / "result.json").write_text(json.dumps({k: v for k, v in result.items() if v is not None}))
        loss = result["step0_train_loss"] if first_loss is None else first_loss
        (run / "train.jsonl").write_text(json.dumps({"step": 0, "train_loss": loss}) + "\n")
        (run / "run.log").write_text(log)
        return run

    return make
