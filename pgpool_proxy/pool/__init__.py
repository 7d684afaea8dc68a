"""Who gets which server: synchronous, time is a parameter, clients and servers are handles."""
