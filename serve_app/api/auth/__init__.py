"""Authentication and authorization: API keys, tokens, sessions, and when connections opened with them must end."""
