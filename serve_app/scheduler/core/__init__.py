"""The scheduler's decisions: a pure state machine and its parts. No clock, no I/O, no threads."""
