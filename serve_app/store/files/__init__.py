"""Clients' files in three areas (input, output, temp), on a volume or in a bucket."""
