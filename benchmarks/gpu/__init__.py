"""What `gpu_check` asks a GPU, step by step, each step in a process of its own."""
