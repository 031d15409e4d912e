"""Triton's interpreter as the first correctness gate: numerics, out-of-bounds accesses, races and traffic on
a CPU.

    gate.py        run_gate: one candidate on one problem -> TestReport
    scaling.py     which sizes: a small workload, the file's own sizes, scaled constants, or sampled programs
    sampling.py    which programs of a sample run, and which elements they stored
    reference.py   the trusted job for expected values; precise.py: float64 and the contract's precision
    compare.py     the trusted job that compares outputs
    run.py         the confined job: runs the candidate's ModelNew on CPU tensors that claim to be CUDA
    answer.py      what the confined job may say
    launch.py      launches under the interpreter: grid loop, autotune, deadline
    memory.py      checked loads and stores
    repair.py, arithmetic.py, reduce.py, libdevice.py   where the interpreter computes wrongly or not at all
    device.py      what makes a CPU tensor look like a CUDA one
    blobs.py       tensors as raw bytes

What this gate does not see: real tensor-core rounding, asynchronous copies, shared-memory races inside a
program, and a candidate that recognises the interpreter and behaves there as it does not on a GPU.
"""
