"""What an artifact file says about itself, readable without a compiler."""
