"""What several families of diffusion transformers share."""
