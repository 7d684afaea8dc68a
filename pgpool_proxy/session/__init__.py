"""What a client and a server say: sessions write to a `Transport` and know no sockets, no clock and no loop."""
