"""Families of video networks, a diffusion transformer each, with the modules that only one of them needs."""
