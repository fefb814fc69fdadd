"""The search: which configuration to measure next, the study that remembers, and the choice at the end."""
