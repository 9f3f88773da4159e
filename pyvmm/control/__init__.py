"""Running VMs seen from outside: each has a socket, and answers there."""
