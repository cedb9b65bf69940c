"""One scheduler at a time, and nothing answered before it is committed: lease, succession, writer."""
