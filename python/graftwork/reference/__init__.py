"""The operations in plain torch: specification, fallback for any device and dtype, oracle of the tests."""
