"""ACE-Step 1.5: songs from a description and lyrics, which a language model plans in codes of sound."""
