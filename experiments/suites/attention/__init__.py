"""Attention variants of the origin's experiment (NVIDIA, February 2025), one problem file each.

Every file is in KernelBench's format and adds the declarations of `verifier/problem.py`. Beside the plain
PyTorch `Model` it holds the FlexAttention form: `score_mod(score, b, h, q_idx, kv_idx)` or
`mask_mod(b, h, q_idx, kv_idx)`.

Scores, masks and the softmax are computed in float32 (in float64 for float64 inputs) and the probabilities
are rounded to the dtype of the inputs before they meet `v`, as FlexAttention's eager form does it. In float16
a score of 4095 would be off by one, and the reference would be the worst kernel of all.
"""
