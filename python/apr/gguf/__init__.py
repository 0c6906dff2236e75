"""GGUF files of the Llama and Qwen2 families, read with the `gguf` package."""
