"""Stored files as HTTP answers, and uploads."""
