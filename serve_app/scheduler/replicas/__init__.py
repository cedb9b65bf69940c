"""The scheduler's side towards replicas: which there are, what each can run, and messages that wait for it."""
