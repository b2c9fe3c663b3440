"""The main job on real input: fine-tune a real model, pack the fine-tunes, restore them bit for bit."""
