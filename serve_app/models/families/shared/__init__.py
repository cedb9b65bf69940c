"""Code shared by several families of diffusion transformers."""
