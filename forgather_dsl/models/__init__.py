"""Models in plain torch: explicit constructors without defaults, HF-compatible parameter names, no import of the rest of the package."""
