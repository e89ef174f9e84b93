"""What everything else stands on: errors, nested batches, keys of randomness, processes, records."""
