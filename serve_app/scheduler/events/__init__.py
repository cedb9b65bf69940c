"""What clients are told of jobs: journal, event streams, feeds and counters."""
