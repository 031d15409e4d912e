"""What the agent reaches out with: models behind one metered gateway, and leases of workers."""
