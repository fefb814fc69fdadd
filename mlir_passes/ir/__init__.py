"""What every rewrite builds and reads IR with."""
