"""The figures of the judge on a GPU, each by a script of its own.

    python -m experiments.figures relu=60 spread=120 --out DIR --kernelbench KernelBench

    relu         GPU seconds for one correct ReLU candidate on KernelBench's level1/19, and KernelBench's harness on it
    stock        traces the candidates of the two figures below; no GPU
    throughput   verdicts per hour for a stream of traced candidates, a third of them wrong
    end_to_end   the same candidates from their source, with trace and interpreter on all cores
    spread       the confirmed speed-up of a matmul and a ReLU candidate over separate judgements
    aa           claims of a gain where a plan is timed against itself; what moved memory adds to the spread of blocks
    hang         the next verdict after an endless kernel
    beside       confirmed times on one GPU while another one is busy; two GPUs
    growth       memory and descriptors over many visits
    published    verdicts on published answers beside what direct runs of them gave

Every measurement is a row of DIR/NAME.jsonl as soon as it is made. A figure stops at its seconds and reports what it
has; `show` as the first word prints the tables of a folder again.
"""

FIGURES = (
    "relu", "stock", "throughput", "end_to_end", "spread", "aa", "hang", "beside", "growth", "published",
)  # fmt: skip
"""Modules of this package."""
