"""The decoder (Qwen2 and Llama families), its configuration and its names."""
