"""Lease, succession and writer: one scheduler at a time, and no answer before its commit."""
