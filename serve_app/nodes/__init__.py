"""The server's own node classes, a folder a subject, and their registry. Models are reached by `execution.runtime`."""
