"""Static profile of compiled kernels and an analytic estimate of a plan's time on a target. Nothing here
needs a GPU.

Modules, from the bottom up: `cubin` (machine code), `ttir` (parser), `interpret` and `work` (operation counts),
`library` (aten steps), `estimate` (time), `diagnosis` (advice), `job` (entry point of the sandbox).
"""
