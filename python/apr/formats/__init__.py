"""Model files of every format: open, list, compare, check and seal `.apr`, safetensors and GGUF files."""
