"""Weights in and out of Hugging Face's folders: `families` speaks config.json, `folder` safetensors, `convert` does both ways."""
