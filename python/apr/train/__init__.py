"""The trainer: loop, optimiser, loss, evaluation, checkpoints, gates, metrics."""
