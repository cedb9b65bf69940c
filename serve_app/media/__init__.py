"""Audio and video files: their samples and pictures as tensors, and back. Knows no nodes.

Coding is FFmpeg's, through PyAV, which is an extra (`pip install 'serve-app[media]'`) and imported once it is needed.
"""
