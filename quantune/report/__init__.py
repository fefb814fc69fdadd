"""Reports of a search: the JSON record, the verdict and one self-contained HTML page."""
