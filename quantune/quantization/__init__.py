"""Configurations and what they mean for a network: bit widths, spaces, statistics, plans, constants, predictions."""
