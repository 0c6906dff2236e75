"""GGUF files, read and written with the `gguf` package."""
