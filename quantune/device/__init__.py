"""Measuring on another machine: a server that runs artifacts there, and its client here."""
