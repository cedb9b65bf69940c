"""MiniMax Music 3: songs, whose sound a language model describes frame by frame."""
