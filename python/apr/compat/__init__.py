"""safetensors' functions over `.apr` files. Users import them from `apr`, `apr.torch` and `apr.numpy`."""
