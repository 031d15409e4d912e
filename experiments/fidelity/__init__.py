"""Can the trace follow what models really write, and do its plans do what the answers do?

    python -m experiments.fidelity FOLDER... --kernelbench KernelBench --out results.json    no GPU: trace, classify
    python -m experiments.fidelity pack FOLDER=CHECKOUT... --to PACKED [--plans S]           pack for another machine
    python -m experiments.fidelity gpu PACKED --out DIR                                      GPU: run, replay, compare
    python -m experiments.fidelity table DIR                                                 the rows of such a run

A folder holds answers of one model, named as KernelBench names them (`level_2_problem_12_sample_0_kernel.py`), each
defining `ModelNew`. They are the user's own; nothing is shipped.

The GPU half runs the answers' own Python beside the reference, in a child process with a deadline and no confinement:
use it on answers that you trust, on a machine that you can lose. That is what the judge exists to avoid.
"""
