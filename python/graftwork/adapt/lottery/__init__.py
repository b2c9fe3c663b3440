"""LT-SFT: lottery-ticket sparse fine-tuning."""
