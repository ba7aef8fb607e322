"""What `gpu_check` asks a GPU, step by step."""
