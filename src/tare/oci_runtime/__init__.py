"""`tare-oci`: an OCI runtime on a bundle, for podman, containerd, Slurm: the init of the engine without its daemon.

Host root, one short process per verb. It stays a descendant of its caller, whose subreaper (conmon, a containerd shim)
inherits init, so the zygote is not used: `create` seals itself, launches and leaves; init waits on a FIFO that `start`
writes one byte to. State is `<root>/<id>/{state.json,start}`, written tmp + rename, processes are named by pid *and*
start time. Specification: runtime-spec runtime.md; flags are runc's. Absent on purpose: the hooks that run inside the
container (createContainer, startContainer), checkpoint, events, intelRdt.
"""

