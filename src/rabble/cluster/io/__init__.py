"""What does: sockets, TLS, files and the threads that wait for them."""
