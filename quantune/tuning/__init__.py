"""A search put together: what is built and measured, and what is left when it ends."""
