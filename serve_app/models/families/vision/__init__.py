"""Image encoders, and style models that read what they see."""
