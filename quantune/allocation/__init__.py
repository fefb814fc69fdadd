"""Which layer gets how many bits: sensitivity scores behind one interface, and an exact allocation under a budget."""
