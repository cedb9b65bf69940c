"""What a replica does, without Ray: its life, its tasks, what it reports, its guard. `deployments` starts it."""
