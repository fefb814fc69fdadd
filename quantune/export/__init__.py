"""A quantized network in the format of others: what was planned, written so that they compute the same."""
