"""SpIEL: sparse fine-tuning whose weights change places."""
