"""Files of images, sound and video: their pixels and samples as tensors, and back. Knows no nodes.

Files that clients send are read by `decoder`'s processes alone, whose code imports no torch; `loading` asks them.
Coding is FFmpeg's, through PyAV, and Pillow's.
"""
