"""Counting the accuracy with many machines: the images are cut into shards, and a Dask cluster answers them."""
