"""Sending webhooks, and to which addresses they may go."""
