"""One file per command. Each has `add(parser)`, which imports nothing heavy, and `run(args) -> exit code`."""
