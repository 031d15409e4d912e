"""The plan: what a candidate would do on the GPU, recorded on a CPU as numbered storages and steps with
compiled kernels."""
