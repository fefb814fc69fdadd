"""From integer linalg to an artifact: targets, the compiler process, its cache, and what an artifact says of itself."""
