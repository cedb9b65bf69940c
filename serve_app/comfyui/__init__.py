"""A ComfyUI process as what runs jobs: starting and ending it, its protocol, its classes as specs, its files.

Knows no Ray. What a replica makes of it is `replica/comfyui_runner.py`'s.
"""
