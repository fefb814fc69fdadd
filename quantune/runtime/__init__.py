"""Loading, running and measuring compiled artifacts."""
