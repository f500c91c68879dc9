"""Run directories after training: open one, read its metrics, let its model write."""
