"""Latents: formats by autoencoder, operations, and inpainting."""
