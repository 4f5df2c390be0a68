/* The physical limit of a container start: the kernel's work and nothing else, for `bench.py` to compare with.
 *
 * usage: limit LOWER BASE BPF PARENT      (root; LOWER: a root file system with /bin/busybox, BASE: a directory for
 * overlay's upper and work, BPF: compiled seccomp program, PARENT: name of a cgroup to work below)
 *
 * For each line on standard input one start; one line back: "<request to running> <clone3 to running> <to gone>" in
 * microseconds. Running = the child's execve closed its status pipe. What is made is what the engine makes for
 * `run --network none IMAGE true`: a leaf in every cgroup hierarchy with device and pids rules, mount/pid/net/ipc/uts
 * namespaces, overlay root, the same mounts, masks and read-only paths, lo, sysctls, pivot_root, capabilities, seccomp,
 * execve. No path of it is configurable and none is checked against a hostile image: this is a yardstick, not a runtime.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX 4096
#define TRY(call) do { if ((call) < 0) fail(#call); } while (0)
#ifndef CLONE_INTO_CGROUP
#define CLONE_INTO_CGROUP 0x200000000ULL
#endif

static char points[32][256], kinds[32][64], leaves[32][MAX], v2[256], v2_leaf[MAX];
static int count, is_hybrid;
static const char *lower, *base, *parent;
static struct sock_fprog filter;

static void fail(const char *what) {
    fprintf(stderr, "limit: %s: %s\n", what, strerror(errno));
    _exit(1);
}

static char *path(const char *format, ...) {
    static char text[8][MAX];
    static int turn;
    va_list arguments;
    char *result = text[turn++ & 7];
    va_start(arguments, format);
    vsnprintf(result, MAX, format, arguments);
    va_end(arguments);
    return result;
}

static void put(const char *file, const char *value) {
    int fd = open(file, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, value, strlen(value)) < 0) fail(file);
    close(fd);
}

static void copy_up(const char *point, const char *leaf, const char *name) {
    char value[MAX];
    int fd = open(path("%s/%s", point, name), O_RDONLY | O_CLOEXEC);
    ssize_t size = fd < 0 ? -1 : read(fd, value, sizeof value - 1);
    if (size < 0) fail(name);
    close(fd);
    value[size] = 0;
    put(path("%s/%s", leaf, name), value);
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1e6 + time.tv_nsec / 1e3;
}

static void find_cgroups(void) {
    char device[256], point[256], type[64], options[1024];
    FILE *mounts = fopen("/proc/self/mounts", "re");
    if (!mounts) fail("/proc/self/mounts");
    while (fscanf(mounts, "%255s %255s %63s %1023s %*d %*d", device, point, type, options) == 4) {
        if (strncmp(point, "/sys/fs/cgroup", 14)) continue;
        if (!strcmp(type, "cgroup2") && !*v2) strcpy(v2, point);
        if (strcmp(type, "cgroup") || count == 32) continue;
        strcpy(points[count], point);
        snprintf(kinds[count++], sizeof kinds[0], "%s", strrchr(point, '/') + 1);
    }
    fclose(mounts);
    is_hybrid = count > 0;
}

static void make_parents(void) {
    for (int i = 0; i < count; i++) {
        char *top = path("%s/%s", points[i], parent);
        if (mkdir(top, 0755) < 0 && errno != EEXIST) fail(top);
        if (!strcmp(kinds[i], "cpuset")) {
            copy_up(points[i], top, "cpuset.cpus");
            copy_up(points[i], top, "cpuset.mems");
        }
        snprintf(leaves[i], MAX, "%s/limit", top);
    }
    if (!*v2) return;
    char *top = path("%s/%s", v2, parent);
    if (mkdir(top, 0755) < 0 && errno != EEXIST) fail(top);
    if (!is_hybrid) {
        put(path("%s/cgroup.subtree_control", v2), "+pids");
        put(path("%s/cgroup.subtree_control", top), "+pids");
    }
    snprintf(v2_leaf, MAX, "%s/limit", top);
}

static const char *ALLOWED[] = {"c *:* m", "b *:* m", "c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 1:8 rwm", "c 1:9 rwm",
                                "c 5:0 rwm", "c 5:1 rwm", "c 5:2 rwm", "c 136:* rwm"};

static void make_leaves(void) {
    for (int i = 0; i < count; i++) {
        TRY(mkdir(leaves[i], 0755));
        if (!strcmp(kinds[i], "cpuset")) {
            char *top = path("%s/%s", points[i], parent);
            copy_up(top, leaves[i], "cpuset.cpus");
            copy_up(top, leaves[i], "cpuset.mems");
        } else if (!strcmp(kinds[i], "pids")) {
            put(path("%s/pids.max", leaves[i]), "4096");
        } else if (!strcmp(kinds[i], "devices")) {
            put(path("%s/devices.deny", leaves[i]), "a");
            int fd = open(path("%s/devices.allow", leaves[i]), O_WRONLY | O_CLOEXEC);
            for (unsigned n = 0; n < sizeof ALLOWED / sizeof *ALLOWED; n++) TRY(write(fd, ALLOWED[n], strlen(ALLOWED[n])));
            close(fd);
        }
    }
    if (*v2) TRY(mkdir(v2_leaf, 0755));
    if (*v2 && !is_hybrid) put(path("%s/pids.max", v2_leaf), "4096");
}

static void remove_leaves(void) {
    for (int i = 0; i < count; i++) TRY(rmdir(leaves[i]));
    if (*v2) TRY(rmdir(v2_leaf));
}

static void bind_mount(const char *source, const char *target, int attributes) {
    TRY(mount(source, target, NULL, MS_BIND, NULL));
    if (attributes) TRY(mount(NULL, target, NULL, MS_BIND | MS_REMOUNT | attributes, NULL));
}

static void make_devices(void) {
    static const struct { const char *name; int major, minor; } nodes[] = {
        {"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}};
    for (unsigned i = 0; i < sizeof nodes / sizeof *nodes; i++)
        TRY(mknod(path("dev/%s", nodes[i].name), S_IFCHR | 0666, makedev(nodes[i].major, nodes[i].minor)));
    TRY(symlink("/proc/self/fd", "dev/fd"));
    TRY(symlink("/proc/self/fd/0", "dev/stdin"));
    TRY(symlink("/proc/self/fd/1", "dev/stdout"));
    TRY(symlink("/proc/self/fd/2", "dev/stderr"));
    TRY(symlink("pts/ptmx", "dev/ptmx"));
}

static void mount_all(void) {
    const int plain = MS_NOSUID | MS_NOEXEC | MS_NODEV;
    TRY(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
    char *merged = path("%s/merged", base);
    TRY(mount("overlay", merged, "overlay", 0, path("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", lower, base, base)));
    TRY(chdir(merged));
    TRY(mount("proc", "proc", "proc", plain, NULL));
    TRY(mount("tmpfs", "dev", "tmpfs", MS_NOSUID | MS_STRICTATIME, "mode=755,size=65536k"));
    make_devices();
    TRY(mkdir("dev/pts", 0755));
    TRY(mount("devpts", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"));
    TRY(mount("sysfs", "sys", "sysfs", plain | MS_RDONLY, NULL));
    if (is_hybrid) {
        TRY(mount("tmpfs", "sys/fs/cgroup", "tmpfs", plain, "mode=755"));
        for (int i = 0; i < count; i++) {
            char *target = path("sys/fs/cgroup/%s", kinds[i]);
            TRY(mkdir(target, 0755));
            bind_mount(leaves[i], target, plain | MS_RDONLY);
        }
    } else {
        bind_mount(v2_leaf, "sys/fs/cgroup", plain | MS_RDONLY);
    }
    TRY(mkdir("dev/mqueue", 0755));
    TRY(mount("mqueue", "dev/mqueue", "mqueue", plain, NULL));
    TRY(mkdir("dev/shm", 01777));
    TRY(mount("shm", "dev/shm", "tmpfs", plain, "mode=1777,size=67108864"));
    static const char *files[] = {"resolv.conf", "hostname", "hosts"};
    for (int i = 0; i < 3; i++) {
        char *target = path("etc/%s", files[i]);
        close(open(target, O_CREAT | O_WRONLY | O_CLOEXEC, 0644));
        bind_mount(path("%s/file", base), target, 0);
    }
    put("proc/sys/net/ipv4/ping_group_range", "0 2147483647");
    put("proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
    put("proc/self/oom_score_adj", "0");
}

static void cover(void) {
    static const char *readonly[] = {"proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger"};
    static const char *masked[] = {
        "proc/acpi", "proc/asound", "proc/interrupts", "proc/kcore", "proc/keys", "proc/latency_stats",
        "proc/sched_debug", "proc/scsi", "proc/timer_list", "proc/timer_stats", "sys/devices/virtual/powercap",
        "sys/firmware"};
    for (unsigned i = 0; i < sizeof readonly / sizeof *readonly; i++)
        if (!access(readonly[i], F_OK)) bind_mount(readonly[i], readonly[i], MS_RDONLY | MS_NOSUID | MS_NOEXEC | MS_NODEV);
    for (unsigned i = 0; i < sizeof masked / sizeof *masked; i++) {
        struct stat found;
        if (stat(masked[i], &found)) continue;
        if (S_ISDIR(found.st_mode)) TRY(mount("tmpfs", masked[i], "tmpfs", MS_RDONLY, "nr_blocks=1,nr_inodes=1"));
        else TRY(mount("dev/null", masked[i], NULL, MS_BIND, NULL));
    }
}

static void loopback_up(void) {
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    TRY(ioctl(fd, SIOCSIFFLAGS, &request));
    close(fd);
}

static void drop_rights(void) {
    static const int kept[] = {CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FSETID, CAP_FOWNER, CAP_MKNOD, CAP_NET_RAW, CAP_SETGID,
        CAP_SETUID, CAP_SETFCAP, CAP_SETPCAP, CAP_NET_BIND_SERVICE, CAP_SYS_CHROOT, CAP_KILL, CAP_AUDIT_WRITE};
    uint64_t mask = 0;
    for (unsigned i = 0; i < sizeof kept / sizeof *kept; i++) mask |= 1ULL << kept[i];
    for (int number = 0; number <= CAP_LAST_CAP; number++)
        if (!(mask >> number & 1)) prctl(PR_CAPBSET_DROP, number, 0, 0, 0);
    if (filter.len) TRY(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &filter));
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {{mask, mask, 0}, {mask >> 32, mask >> 32, 0}};
    TRY(syscall(SYS_capset, &header, data));
}

static void child(void) {
    /* "tasks", not "cgroup.procs": moving a whole thread group waits for an RCU grace period, 10-20 ms on a machine that
     * has not just done it (cgroup_procs_write_start takes cgroup_threadgroup_rwsem), moving the caller's thread does not. */
    for (int i = 0; i < count; i++) put(path("%s/tasks", leaves[i]), "0");
    setsid();
    mount_all();
    cover();
    loopback_up();
    TRY(syscall(SYS_pivot_root, ".", "."));
    TRY(umount2(".", MNT_DETACH));
    TRY(chdir("/"));
    TRY(sethostname("limit", 5));
    TRY(syscall(SYS_close_range, 3, ~0U, 4)); /* CLOSE_RANGE_CLOEXEC */
    drop_rights();
    char *argv[] = {"true", NULL}, *envp[] = {"PATH=/bin", "HOME=/", NULL};
    execve("/bin/busybox", argv, envp);
    fail("execve");
}

static void one_start(void) {
    int status[2], pidfd = -1, into = -1;
    char byte;
    TRY(pipe2(status, O_CLOEXEC));
    double begin = now();
    make_leaves();
    struct clone_args arguments = {
        .flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_PIDFD,
        .pidfd = (uint64_t)(uintptr_t)&pidfd, .exit_signal = SIGCHLD};
    if (*v2) {
        TRY(into = open(v2_leaf, O_PATH | O_DIRECTORY | O_CLOEXEC));
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = into;
    }
    double cloning = now();
    long pid = syscall(SYS_clone3, &arguments, sizeof arguments);
    if (pid < 0) fail("clone3");
    if (pid == 0) child();
    close(status[1]);
    if (into >= 0) close(into);
    if (read(status[0], &byte, 1) != 0) fail("start");
    double running = now();
    siginfo_t info = {0};
    TRY(waitid(P_PIDFD, pidfd, &info, WEXITED));
    if (info.si_code != CLD_EXITED || info.si_status) {
        fprintf(stderr, "limit: the program ended with %d\n", info.si_status);
        _exit(1);
    }
    remove_leaves();
    printf("%.1f %.1f %.1f\n", running - begin, running - cloning, now() - begin);
    fflush(stdout);
    close(status[0]);
    close(pidfd);
}

int main(int argc, char **argv) {
    char line[16];
    if (argc != 5) return fprintf(stderr, "usage: limit LOWER BASE BPF PARENT\n"), 2;
    lower = argv[1], base = argv[2], parent = argv[4];
    int fd = open(argv[3], O_RDONLY | O_CLOEXEC);
    if (fd < 0) fail(argv[3]);
    filter.filter = malloc(1 << 20);
    filter.len = read(fd, filter.filter, 1 << 20) / sizeof *filter.filter;
    close(fd);
    umask(0);
    TRY(mkdir(path("%s/merged", base), 0755));
    close(open(path("%s/file", base), O_CREAT | O_WRONLY | O_CLOEXEC, 0644));
    find_cgroups();
    make_parents();
    while (fgets(line, sizeof line, stdin)) {
        /* A fresh upper directory, as for a new container; the engine too makes it before the start. */
        if (mkdir(path("%s/upper", base), 0755) < 0 && errno != EEXIST) fail("upper");
        if (mkdir(path("%s/work", base), 0755) < 0 && errno != EEXIST) fail("work");
        one_start();
    }
    for (int i = 0; i < count; i++) rmdir(path("%s/%s", points[i], parent));
    if (*v2) rmdir(path("%s/%s", v2, parent));
    return 0;
}
