"""Image encoders, and style models that read their features."""
