"""A replica without Ray: its life cycle, tasks, reports, watchdog. `deployments` starts it."""
