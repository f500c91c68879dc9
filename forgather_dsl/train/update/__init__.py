"""How a step is applied: after the backward pass, in it, or on the host (`Experiment.update`)."""
