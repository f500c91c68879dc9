"""Text in, fixed-length batches out: sources, tokenizers, a memory-mapped token cache, a resumable loader.

numpy only, no torch. sources.py -> tokenizers.py -> tokens.py -> loader.py is the way of the data.
"""
