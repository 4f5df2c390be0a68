#!/bin/sh
# Runs inside a container and prints one "key=value" line per property of its isolation that can be seen from there.
#   docker run --rm -v $PWD/isolation-probe.sh:/probe.sh:ro busybox sh /probe.sh
# Needs busybox applets only, leaves nothing behind, and changes nothing outside the container: a write test writes the
# value that is there already, or opens what must be refused. Keys "info.*" differ from run to run and are no contract.
# PROBE_PID=self reports the files and the environment of this shell in place of process 1 (exec).
PATH=/bin:/sbin:/usr/bin:/usr/sbin LC_ALL=C
export PATH LC_ALL
T=${PROBE_PID:-1}
[ "$T" = self ] && T=$$
S=/dev/shm                  # scratch files: writable with --read-only too
D=/tmp                      # scratch nodes: not on a nodev mount
(: >$D/.w) 2>/dev/null && rm -f $D/.w || D=/dev

p() { k=$1; shift; printf '%s=%s\n' "$k" "$(printf '%s' "$*" | tr '\n\t' '  ')"; }
has() { command -v "$1" >/dev/null 2>&1; }
status() { sed -n "s/^$1:[[:space:]]*//p" /proc/self/status | tr -s '\t' ' '; }
err() { # the errno named in an error message
    case "$1" in
        *Read-only*) echo EROFS ;; *"ermission denied"*) echo EACCES ;; *"not permitted"*) echo EPERM ;;
        *"o such file"* | *nonexistent*) echo ENOENT ;; *"nvalid argument"*) echo EINVAL ;;
        *"not implemented"*) echo ENOSYS ;; *"not supported"*) echo EOPNOTSUPP ;; *"ext file busy"*) echo ETXTBSY ;;
        *busy*) echo EBUSY ;; *"o such device"*) echo ENODEV ;; *"nput/output"*) echo EIO ;;
        *"o space"*) echo ENOSPC ;; *"s a directory"*) echo EISDIR ;; "") echo OK ;; *) echo ERR ;;
    esac
}
try() { # run a command: OK, or the errno its message names
    if o=$("$@" 2>&1 >/dev/null); then echo OK; return; else r=$?; fi
    e=$(err "$o")
    [ "$e" = OK ] && e="rc$r"
    echo "$e"
}
rewrite() { # write a file's own content into it
    [ -e "$1" ] || { echo ENOENT; return; }
    v=$(cat "$1" 2>/dev/null)
    try sh -c 'printf "%s\n" "$1" > "$2"' _ "$v" "$1"
}
openw() { # open for writing; no byte is written
    [ -e "$1" ] || { echo ENOENT; return; }
    try sh -c ': >> "$1"' _ "$1"
}
readable() { # is there anything in the first 64 bytes
    [ -e "$1" ] || { echo ENOENT; return; }
    o=$(dd if="$1" bs=64 count=1 2>$S/.e | wc -c)
    e=$(err "$(grep -v records $S/.e | grep -v copied)")
    rm -f $S/.e
    [ "$e" = OK ] || { echo "$e"; return; }
    [ "$o" -gt 0 ] && echo read:data || echo read:empty
}
mount_of() { # "type options data" of the last mount at a path
    awk -v t="$1" '{ for (i = 7; i <= NF; i++) if ($i == "-") break; if ($5 == t) r = $(i+1) " " $6 " " $(i+3) }
        END { print (r == "" ? "none" : r) }' /proc/self/mountinfo
}
mounts() { # an awk expression per mount; t is the file system's type
    awk "{ for (i = 7; i <= NF; i++) if (\$i == \"-\") break; t = \$(i+1); $1 }" /proc/self/mountinfo
}

# 1. identity, capabilities, seccomp
p id "$(id -u):$(id -g)"
p id.groups "$(status Groups | tr -s ' ' | sed 's/ *$//')"
for c in CapInh CapPrm CapEff CapBnd CapAmb; do p "cap.$c" "$(status $c)"; done
names="chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable net_bind_service
    net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct sys_admin
    sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease audit_write audit_control setfcap mac_override
    mac_admin syslog wake_alarm block_suspend audit_read perfmon bpf checkpoint_restore"
b=$(status CapBnd)
low=$((0x$(echo "$b" | cut -c9-16))) high=$((0x$(echo "$b" | cut -c1-8))) i=0 l=
for n in $names; do
    if [ $i -lt 32 ]; then bit=$(((low >> i) & 1)); else bit=$(((high >> (i - 32)) & 1)); fi
    [ $bit = 1 ] && l="$l $n"
    i=$((i + 1))
done
p cap.bounding.names "${l# }"
p nnp "$(status NoNewPrivs)"
p seccomp.mode "$(status Seccomp)"
p seccomp.filters "$(status Seccomp_filters)"
p speculation.ssb "$(status Speculation_Store_Bypass)"
p speculation.ib "$(status SpeculationIndirectBranch)"
p lsm.current "$(cat /proc/self/attr/current 2>/dev/null | tr -d '\000')"
p umask "$(umask)"
p dumpable.self_mem_owner "$(stat -c %u:%g /proc/self/mem)"
p oom_score_adj.delta "$(cat /proc/self/oom_score_adj)"
p oom_score_adj.lower "$(try sh -c 'echo -1000 > /proc/self/oom_score_adj')"
p tracerpid "$(status TracerPid)"
p coredump_filter "$(cat /proc/self/coredump_filter 2>/dev/null)"
p personality "$(cat /proc/self/personality 2>/dev/null)"
p timerslack_ns "$(cat /proc/self/timerslack_ns 2>/dev/null)"
p sched.policy_nice "$(awk '{print $41"/"$19}' /proc/self/stat)"
p sig.ignored "$(sed -n 's/^SigIgn:\t*//p' /proc/$T/status)"
p sig.blocked "$(sed -n 's/^SigBlk:\t*//p' /proc/$T/status)"
p info.cpus_allowed "$(status Cpus_allowed_list)"
p info.thp "$(status THP_enabled)"

# 2. descriptors, environment, session. Listed into a file: a command substitution would add a pipe of its own
sh -c "ls -l /proc/$T/fd > $S/.fds"
n=0 odd=
while read -r _ _ _ _ _ _ _ _ fd _ target; do
    case "$fd" in
        0 | 1 | 2) n=$((n + 1)) ;;
        "") ;;
        *) case "$target" in
            *probe* | *.sh | */fd | *.fds) ;;
            *) n=$((n + 1)) odd="$odd $fd->$target" ;;
        esac ;;
    esac
done <$S/.fds
rm -f $S/.fds
p fd.pid1.count "$n"
p fd.pid1.extra "${odd# }"
for i in 0 1 2; do p fd.pid1.$i "$(readlink /proc/$T/fd/$i | sed 's/\[[0-9]*\]//')"; done
p fd.dirs_open "$(for f in /proc/self/fd/*; do [ -d "$f/." ] && readlink "$f"; done 2>/dev/null |
    grep -v '^/proc' | tr '\n' ' ')"
p cwd "$(readlink /proc/$T/cwd)"
p root "$(readlink /proc/$T/root)"
p cwd.outside_root "$(case "$(pwd 2>&1)" in '(unreachable)'* | *rror*) echo YES ;; *) echo no ;; esac)"
p env.names "$(tr '\000' '\n' </proc/$T/environ | sed 's/=.*//' | sort | tr '\n' ' ' | sed 's/ $//')"
p env.PATH "$(tr '\000' '\n' </proc/$T/environ | sed -n 's/^PATH=//p')"
p env.HOME "$(tr '\000' '\n' </proc/$T/environ | sed -n 's/^HOME=//p')"
p pid1.sid_pgid "$(awk '{print ($6==1?"own":$6)"/"($5==1?"own":$5)}' /proc/1/stat)"
p pid1.ppid "$(awk '{print $4}' /proc/1/stat)"
p info.procs "$(ls -d /proc/[0-9]* | wc -l)"
p rlimits "$(awk 'NR > 1 { n = substr($0, 1, 26); s = substr($0, 27, 21); h = substr($0, 48, 21)
    gsub(/ +$/, "", n); gsub(/ /, "_", n); gsub(/ /, "", s); gsub(/ /, "", h); printf "%s:%s/%s ", n, s, h
    }' /proc/self/limits | sed 's/Max_//g')"

# 3. namespaces. The initial ones have fixed inode numbers
for n in cgroup ipc mnt net pid pid_for_children time user uts; do
    l=$(readlink /proc/self/ns/$n) l=${l#*[}
    case $n:${l%]} in
        time*:4026531834 | cgroup:4026531835 | pid*:4026531836 | user:4026531837 | uts:4026531838 | ipc:4026531839 | \
            mnt:4026531832 | mnt:4026531840 | mnt:4026531841 | net:4026531833 | net:4026531840) p ns.$n host ;;
        *) p ns.$n private ;;
    esac
done
p uid_map "$(tr -s ' ' </proc/self/uid_map | sed 's/^ //' | tr '\n' ';')"
p gid_map "$(tr -s ' ' </proc/self/gid_map | sed 's/^ //' | tr '\n' ';')"
p setgroups "$(cat /proc/self/setgroups 2>/dev/null)"
p hostname.is_id "$(hostname | grep -qE '^[0-9a-f]{12}$' && echo yes || echo no)"
p domainname "$(cat /proc/sys/kernel/domainname 2>/dev/null)"
p unshare.user "$(try unshare -U true)"
p unshare.mount "$(try unshare -m true)"
p unshare.net "$(try unshare -n true)"
p unshare.user_mount "$(try unshare -Urm true)"
p sethostname "$(try hostname "$(hostname)")"

# 4. mounts
for m in / /proc /dev /dev/pts /dev/shm /dev/mqueue /dev/console /sys /sys/fs/cgroup /etc/resolv.conf /etc/hostname \
    /etc/hosts /proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger /proc/acpi /proc/asound /proc/interrupts \
    /proc/kcore /proc/keys /proc/latency_stats /proc/sched_debug /proc/scsi /proc/timer_list /proc/timer_stats \
    /sys/firmware /sys/devices/virtual/powercap /run /run/.containerenv /run/secrets; do
    p "mnt.$m" "$(mount_of $m | awk '{print $1, $2}')"
done
p mnt.dev.opts "$(mount_of /dev | cut -d' ' -f3- | sed 's/,inode64//')"
p mnt.shm.opts "$(mount_of /dev/shm | cut -d' ' -f3- | sed 's/,inode64//')"
p mnt.devpts.opts "$(mount_of /dev/pts | cut -d' ' -f3-)"
p mnt.propagation "$(awk '{for(i=7;i<=NF&&$i!="-";i++) print $i}' /proc/self/mountinfo | sed 's/:.*//' | sort | uniq -c |
    awk '{print $2":"$1}' | tr '\n' ' ')"
p mnt.root.propagation "$(awk '$5=="/"{s="private"; for(i=7;i<=NF&&$i!="-";i++) s=$i; sub(/:.*/,"",s); r=s}
    END{print r}' /proc/self/mountinfo)"
p mnt.all "$(mounts 'print $5"("t","substr($6,1,2)")"' | grep -v thermal_throttle | sort | tr '\n' ' ')"
p mnt.thermal_throttle_masked "$(awk '$5~/thermal_throttle/' /proc/self/mountinfo | wc -l)"
p mnt.count "$(grep -vc thermal_throttle /proc/self/mountinfo)"
p mnt.host_paths_leaked "$(mounts 'print $(i+3)' | tr ',' '\n' |
    sed -n 's/^\(lowerdir+\?\|upperdir\|workdir\)=.*/\1/p' | sort -u | tr '\n' ' ')"
p dev.shm.size_kb "$(df -k /dev/shm 2>/dev/null | awk 'NR==2{print $2}')"
p dev.shm.mode "$(stat -c %a /dev/shm 2>/dev/null)"
cp /bin/busybox /dev/shm/.x 2>/dev/null
chmod 755 /dev/shm/.x 2>/dev/null
p dev.shm.exec "$(try /dev/shm/.x true)"
rm -f /dev/shm/.x
p tmp.mode "$(stat -c %a /tmp)"
p root.mode "$(stat -c %a:%u:%g /)"
p rootfs.writable "$(try sh -c ': > /.probe && rm /.probe')"
mkdir -p $S/.m
p do.mount_tmpfs "$(try mount -t tmpfs t $S/.m)"
umount $S/.m 2>/dev/null
p do.mount_proc "$(try mount -t proc p $S/.m)"
umount $S/.m 2>/dev/null
p do.remount_sys_rw "$(try mount -o remount,rw /sys)"
p do.remount_procsys_rw "$(try mount -o remount,rw /proc/sys)"
p do.umount_mask "$(try umount /proc/kcore)"
p do.umount_sys "$(try umount /sys/firmware)"
p do.chroot "$(try chroot / true)"
p do.pivot_root "$(try pivot_root / $S/.m)"
p do.swapon "$(try swapon /dev/null)"

# 5. /dev and the device cgroup
p dev.list "$(ls -A /dev | sort | tr '\n' ' ' | sed 's/ $//')"
for d in null zero full random urandom tty console ptmx; do
    p dev.$d "$([ -h /dev/$d ] && echo "->$(readlink /dev/$d)" || stat -c '%F %a %u:%g %t:%T' /dev/$d 2>/dev/null)"
done
for d in fd stdin stdout stderr core; do p dev.$d "$(readlink /dev/$d)"; done
p dev.pts.list "$(ls /dev/pts | sort | tr '\n' ' ')"
p dev.pts.ptmx "$(stat -c '%a %u:%g' /dev/pts/ptmx 2>/dev/null)"
node() { # key type major minor: may the node be made, may it be opened
    rm -f $D/.d
    m=$(try mknod $D/.d $2 $3 $4) r=-
    if [ "$m" = OK ]; then
        o=$(dd if=$D/.d of=/dev/null bs=1 count=0 2>&1)
        case "$o" in *records*) r=OK ;; *) r=$(err "$o") ;; esac
    fi
    rm -f $D/.d
    p "devcg.$1_$2$3:$4" "mknod:$m open:$r"
}
node null c 1 3; node mem c 1 1; node kmsg c 1 11; node port c 1 4; node tun c 10 200; node fuse c 10 229
node loopctl c 10 237; node kvm c 10 232; node tty0 c 4 0; node vda b 254 0; node sda b 8 0; node loop0 b 7 0
node vport c 249 0
p devcg.fifo "$(try sh -c "mkfifo $D/.f && rm $D/.f")"
p info.root_dev "$(awk '$5=="/"{print $3}' /proc/self/mountinfo | tail -1)"
p devcg.list "$(sort -u /sys/fs/cgroup/devices/devices.list 2>/dev/null | tr '\n' ';')"

# 6. /proc and /sys
for f in acpi asound bus/input/devices bus/pci/devices fs/ext4 interrupts irq/default_smp_affinity kcore keys key-users \
    latency_stats sched_debug scsi/scsi sysrq-trigger timer_list timer_stats kallsyms kmsg config.gz kpagecount \
    kpageflags slabinfo vmallocinfo iomem ioports modules mdstat schedstat pagetypeinfo dma diskstats cmdline \
    version_signature; do
    [ -d /proc/$f ] && p proc.$f "dir:$(ls -A /proc/$f 2>/dev/null | wc -l)" || p proc.$f "$(readable /proc/$f)"
done
p proc.kallsyms.zeroed "$(head -1 /proc/kallsyms 2>/dev/null | cut -d' ' -f1 | tr -d 0 | wc -c |
    awk '{print $1<=1?"yes":"no"}')"
p proc.sysrq.open "$(openw /proc/sysrq-trigger)"
p proc.kcore.open "$(openw /proc/kcore)"
p proc.irq.open "$(openw /proc/irq/default_smp_affinity)"
p proc.scsi.open "$(openw /proc/scsi/scsi)"
p proc.mtrr.open "$(openw /proc/mtrr)"
for s in kernel/core_pattern kernel/modprobe kernel/hotplug kernel/sysrq kernel/hostname kernel/domainname \
    kernel/shmmax kernel/msgmax kernel/sem kernel/panic kernel/randomize_va_space kernel/yama/ptrace_scope \
    kernel/unprivileged_bpf_disabled kernel/ns_last_pid kernel/pid_max kernel/threads-max vm/overcommit_memory \
    vm/panic_on_oom vm/drop_caches fs/binfmt_misc/register fs/file-max fs/mqueue/msg_max fs/suid_dumpable \
    net/ipv4/ip_forward net/ipv4/ping_group_range net/ipv4/ip_unprivileged_port_start net/core/somaxconn \
    net/ipv6/conf/all/disable_ipv6 net/ipv6/conf/lo/disable_ipv6 user/max_user_namespaces; do
    case $s in
        vm/drop_caches | fs/binfmt_misc/register | kernel/ns_last_pid) p sysctl.$s.write "$(openw /proc/sys/$s)" ;;
        *) p sysctl.$s.write "$(rewrite /proc/sys/$s)" ;;
    esac
done
for s in net/ipv4/ping_group_range net/ipv4/ip_unprivileged_port_start net/ipv4/ip_forward \
    net/ipv6/conf/all/disable_ipv6 net/ipv6/conf/default/disable_ipv6 net/ipv4/conf/eth0/route_localnet \
    net/ipv4/conf/all/rp_filter net/core/somaxconn kernel/shmmax kernel/msgmax; do
    p sysctl.$s "$(cat /proc/sys/$s 2>/dev/null | tr -s '\t' ' ')"
done
for f in firmware/dmi firmware/efi devices/virtual/powercap kernel/security kernel/debug kernel/tracing fs/bpf fs/fuse \
    fs/selinux; do
    [ -e /sys/$f ] && p sys.$f "entries:$(ls -A /sys/$f 2>/dev/null | wc -l)" || p sys.$f ENOENT
done
p info.sys.module "entries:$(ls -A /sys/module 2>/dev/null | wc -l)"
for f in kernel/uevent_helper kernel/mm/transparent_hugepage/enabled power/state kernel/profiling class/net/lo/mtu \
    devices/system/cpu/smt/control; do
    p sys.$f.write "$(openw /sys/$f)"
done
p proc.self_exe "$(readlink /proc/self/exe)"
p proc.pid1.exe.write "$(openw /proc/1/exe)"
p proc.hidepid "$(mount_of /proc | grep -o 'hidepid=[a-z0-9]*')"
p dmesg "$(try dmesg)"
p proc.loginuid "$(cat /proc/self/loginuid 2>/dev/null)"
p proc.sessionid "$(cat /proc/self/sessionid 2>/dev/null)"
p keyring.session "$(grep -c . /proc/keys 2>/dev/null)"
p proc.partitions "$(readable /proc/partitions)"

# 7. cgroups
cg=/sys/fs/cgroup
p cgroup.paths "$(cut -d: -f2- /proc/self/cgroup | sed 's/[0-9a-f]\{64\}/<id>/g' | sort | tr '\n' ' ' | sed 's/ $//')"
p cgroup.fs "$(mount_of $cg | cut -d' ' -f1)"
p cgroup.mounts "$(mounts 'if (t ~ /^cgroup/) print $5":"t":"substr($6,1,2)' | sort | tr '\n' ' ')"
p cgroup.root_visible "$(mounts 'if (t ~ /^cgroup/) print $4' | sed 's/[0-9a-f]\{64\}/<id>/g' | sort -u | tr '\n' ' ')"
for c in memory pids devices cpu; do
    [ -d $cg/$c ] && p cgroup.$c.mkdir "$(try sh -c "mkdir $cg/$c/.p && rmdir $cg/$c/.p")"
done
p cgroup.v2.mkdir "$([ -e $cg/cgroup.procs ] && try sh -c "mkdir $cg/.p && rmdir $cg/.p" || echo n/a)"
p cgroup.release_agent "$(for d in $cg/*; do
    [ -e $d/release_agent ] && echo "${d##*/}:$(openw $d/release_agent)"
done | sort -u | tr '\n' ' ')"
p cgroup.devices_allow "$(openw $cg/devices/devices.allow)"
p cgroup.mount_new "$(try mount -t cgroup -o memory c $S/.m)"
umount $S/.m 2>/dev/null
p cgroup.unshare_escape "$(try unshare -Urm mount -t cgroup -o memory c $S/.m)"
rmdir $S/.m
limit() { cat $cg/$1 2>/dev/null || cat $cg/$2 2>/dev/null || echo n/a; }
p cgroup.pids.max "$(limit pids/pids.max pids.max)"
p cgroup.memory.max "$(limit memory/memory.limit_in_bytes memory.max)"
p cgroup.cpu.quota "$(limit cpu/cpu.cfs_quota_us cpu.max)"
p cgroup.cpu.shares "$(limit cpu/cpu.shares cpu.weight)"
p cgroup.oom_control "$(limit memory/memory.oom_control memory.oom.group | head -1)"
p cgroup.swappiness "$(limit memory/memory.swappiness memory.swap.max)"

# 8. network and files
p net.ifaces "$(ls /sys/class/net | sort | tr '\n' ' ')"
p net.eth0.mtu "$(cat /sys/class/net/eth0/mtu 2>/dev/null)"
p net.eth0.mac_laa "$(cut -c2 /sys/class/net/eth0/address 2>/dev/null | grep -qE '[26ae]' && echo yes || echo no)"
p net.routes "$(route -n 2>/dev/null | awk 'NR>2{print $1"/"$3"@"$8}' | sort | tr '\n' ' ')"
p net.inet6 "$(ifconfig eth0 2>/dev/null | grep -c inet6)"
p net.unix_abstract "$(grep -c '@' /proc/net/unix 2>/dev/null)"
p net.raw_socket "$(ping -c1 -W1 127.0.0.1 >/dev/null 2>&1 && echo OK || echo FAIL)"
p net.bind_low "$(timeout 1 nc -l -p 80 >/dev/null 2>&1; [ $? -ge 124 ] && echo OK || echo FAIL)"
p net.ip_link_add "$(try ip link add d0 type dummy)"
p net.iptables "$(has iptables && try iptables -L || echo n/a)"
p net.resolv "$(grep -v '^#' /etc/resolv.conf | sed 's/ .*//' | sort | uniq -c | awk '{print $2":"$1}' | tr '\n' ' ')"
p net.hosts.lines "$(grep -c . /etc/hosts)"
p net.hosts.perm "$(stat -c '%a %u:%g' /etc/hosts /etc/hostname /etc/resolv.conf | tr '\n' ' ')"
p info.hostmark "$(cat /proc/sys/kernel/random/boot_id)"
p files.engine_markers "$(for f in /.dockerenv /run/.containerenv /.docker-init /dev/init /sbin/docker-init; do
    [ -e $f ] && echo "$f:$(stat -c %a:%s $f)"
done | tr '\n' ' ')"
p files.setuid "$(find / -xdev -type f \( -perm -4000 -o -perm -2000 \) 2>/dev/null | sort | tr '\n' ' ')"
p files.world_writable_dirs "$(find / -xdev -type d -perm -0002 ! -perm -1000 2>/dev/null | sort | head -5 | tr '\n' ' ')"
p files.docker_sock "$([ -S /var/run/docker.sock ] && echo PRESENT || echo absent)"
p probe.end ok
