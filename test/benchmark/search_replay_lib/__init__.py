"""Parts of test/benchmark/search_replay.py: tables, search methods, statistics."""
