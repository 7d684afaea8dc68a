"""One process put together: the worker, its signals, the daemon around it."""
