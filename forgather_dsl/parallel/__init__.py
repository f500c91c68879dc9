"""Launching ranks, building their stages and running a schedule's actions on torch.distributed."""
