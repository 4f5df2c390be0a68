"""Meters and fuses: cgroup v1, hybrid and v2 behind one interface. No policy, no state of its own."""
