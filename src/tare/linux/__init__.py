"""The kernel as it is: system calls, descriptors, /proc, terminals, netlink. No policy, no state, stdlib only."""
