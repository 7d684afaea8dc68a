"""PostgreSQL's protocol 3 as bytes: no sockets, no clock, no logging."""
