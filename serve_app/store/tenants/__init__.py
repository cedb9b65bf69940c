"""Tenants in the store: keys, audit log, files apart, bytes and usage."""
