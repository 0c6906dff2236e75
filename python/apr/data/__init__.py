"""Token shards: their manifest, their production, and the order in which they are read."""
