"""Small trained CNNs for the built-in image tasks, and the script that trains them."""
