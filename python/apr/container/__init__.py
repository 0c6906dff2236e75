"""The `.apr` container in Python: open, load, save, verify, inspect, convert."""
