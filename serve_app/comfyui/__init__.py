"""A ComfyUI process that runs jobs: starting and ending it, its protocol, its classes as specs, its files.

Knows no Ray. `replica/comfyui_runner.py` makes a replica of it.
"""
