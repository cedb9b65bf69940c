"""Workflows as the web page saves them, converted to the API's format."""
