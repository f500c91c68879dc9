"""Models and weights in and out: `export` and `incoming` are the two ways, `families` speaks config.json, `folder` safetensors."""
