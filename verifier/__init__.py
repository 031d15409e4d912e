"""The judge: problems, plans, the sandbox, the interpreter gate, the static profile and the verdict."""
