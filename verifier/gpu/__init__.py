"""The judge on the GPU: replay of plans, slots shared between processes, correctness and time."""
