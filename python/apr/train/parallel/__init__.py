"""Several processes, or ranks, that train one model together; each has a part of every step's windows."""
