"""YuE 2: songs of a language model that writes a score, then codes of sound, whose keys and values a network reads."""
