"""The `.apr` container: open, save, verify, compare and stamp files."""
