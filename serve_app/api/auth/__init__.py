"""Who makes a request: keys, tokens, sessions, and when what they opened must end."""
