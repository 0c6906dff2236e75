"""The machine a run works on: device, memory, torch's settings and signals."""
