"""The transports of handler/net on real sockets, over HTTP and HTTPS, against servers that play scripts."""
