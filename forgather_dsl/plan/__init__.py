"""What a run will cost, before it runs: schedules as data, stage split, memory per rank. No torch."""
