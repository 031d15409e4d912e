"""Leases of workers: where the blocking parts of a verdict run."""
