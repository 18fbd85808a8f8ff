# shellcheck shell=bash
# Tier 1: a host in a container. CACHE/run/ID/ holds its tree (`root`), the disk that this is on, its console and, in `state`,
# what it is made of.

run_dir() { printf '%s/run/%s\n' "$CACHE" "$1"; }

# Only hosts: images of virtual machines may lie there too.
host_dirs() {
    local suite
    for suite in $SUITES; do
        compgen -G "$CACHE/run/$suite-??????" || true
    done
}

# What read_state sets. Processes are kept with their start time, so that a number used again is nobody's.
forget_state() {
    owner='' owner_start='' bound='' supervisor='' supervisor_start='' leader='' leader_start=''
}
forget_state

# read_state ID
read_state() {
    local file
    file=$(run_dir "$1")/state
    forget_state
    [[ -r $file ]] || return 1
    # shellcheck source=/dev/null
    . "$file"
}

# add_state ID KEY=VALUE...
add_state() {
    local file pair
    file=$(run_dir "$1")/state
    shift
    for pair in "$@"; do
        printf '%s=%q\n' "${pair%%=*}" "${pair#*=}" >>"$file"
    done
}

need_running() {
    [[ -n ${1:-} ]] || bad_usage 'no ID given'
    { read_state "$1" && is_alive "$leader" "$leader_start"; } || fail "no running host '$1'; see host list"
}

host_boot() {
    local suite=${1:-} owned_by=$PPID is_bound='' copies=() binds=() program='' id
    need_suite "$suite"
    shift
    while (($#)); do
        case $1 in
            --owner) owned_by=$2 is_bound=1 ;;
            --copy) copies+=("$2") ;;
            --program) program=$2 ;;
            --ro-bind) binds+=("--bind-ro=$2") ;;
            --bind) binds+=("--bind=$2") ;;
            *) bad_usage "boot: unknown option '$1'" ;;
        esac
        shift 2
    done
    install_tools
    ensure_tree "$suite"
    cgroup2_mount >/dev/null
    host_sweep

    id=$(claim_id "$suite")
    # shellcheck disable=SC2064  # the id of now
    trap "host_stop '$id'" EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    add_state "$id" "owner=$owned_by" "owner_start=$(process_start "$owned_by" || true)" "bound=$is_bound"
    prepare_root "$id" "$suite" ${copies[@]+"${copies[@]}"}
    [[ -z $program ]] || install_program "$(run_dir "$id")/root" "$program"
    net_up "$id" "$(run_dir "$id")/root"
    launch "$id" ${binds[@]+"${binds[@]}"}
    wait_for_leader "$id"
    wait_for_running "$id"
    trap - EXIT INT TERM
    printf '%s\n' "$id"
}

# The directory is the claim: mkdir is atomic. The veth pair and the nft table are named after the last part alone.
claim_id() {
    local hex
    mkdir -p "$CACHE/run"
    until hex=$(random_hex); ! compgen -G "$CACHE/run/*-$hex" >/dev/null && mkdir "$CACHE/run/$1-$hex"; do :; done
    printf '%s-%s\n' "$1" "$hex"
}

prepare_root() {
    local id=$1 suite=$2 root generator
    shift 2
    root=$(run_dir "$id")/root
    make_disk "$(run_dir "$id")"
    copy_tree "$suite" "$root"
    # Each `daemon-reload` runs all generators: these have nothing to do in a container.
    mkdir -p "$root/etc/systemd/system-generators"
    for generator in cryptsetup debug gpt-auto hibernate-resume integritysetup rc-local run ssh sysv tpm2 veritysetup; do
        ln -sf /dev/null "$root/etc/systemd/system-generators/systemd-$generator-generator"
    done
    printf '%s\n' "$id" >"$root/etc/hostname"
    tr -d - </proc/sys/kernel/random/uuid >"$root/etc/machine-id"
    copy_into "$root" "$@"
}

# A file system of its own, without a journal: with one, ext4 looks for each new file at those that were deleted in the last
# minutes, and the tests delete whole systems. It is removed at once, too.
make_disk() {
    mkdir "$1/root"
    truncate -s 16G "$1/disk"
    mke2fs -q -t ext4 -O ^has_journal -m 0 "$1/disk"
    mount -o loop "$1/disk" "$1/root" || say 'no loop device: the host lies on the file system of the cache'
}

# Where the unified hierarchy is: everything on newer machines, beside v1 on hybrid ones.
cgroup2_mount() {
    local mount
    mount=$(findmnt -n -t cgroup2 -o TARGET | head -n 1)
    [[ -n $mount ]] || cannot 'no cgroup v2 hierarchy is mounted'
    printf '%s\n' "$mount"
}

# A cgroup of its own keeps two hosts apart: nspawn makes its groups below the one that it is started in.
launch() {
    local id=$1 dir cgroup
    shift
    dir=$(run_dir "$id")
    cgroup=$(cgroup2_mount)/machinist-$id
    mkdir -p "$cgroup"
    # A host has keyrings. Not bpf: with it cgroups of tier 1 would have some of what only tier 2 has.
    # Through sh, as the group must be entered before there is a child. If the group is gone, so is the host.
    # shellcheck disable=SC2016
    SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 setsid sh -c 'echo $$ >"$0/cgroup.procs" && exec "$@"' "$cgroup" \
        systemd-nspawn --quiet --boot --directory="$dir/root" --machine="$id" --register=no --keep-unit \
        --capability=all --system-call-filter='add_key keyctl request_key' \
        --network-namespace-path="/run/netns/$(netns_name "$id")" --resolv-conf=off --link-journal=no \
        --console=read-only --bind=/dev/fuse --bind=/dev/net/tun --bind=/dev/loop-control "$@" \
        </dev/null >"$dir/console.log" 2>&1 &
    supervisor=$!
    disown
    add_state "$id" "supervisor=$supervisor" "supervisor_start=$(process_start "$supervisor")"
}

wait_for_leader() {
    local id=$1
    if ! wait_until 15 has_leader "$supervisor"; then
        tail -n 20 "$(run_dir "$id")/console.log" >&2
        cannot "systemd-nspawn did not start $id"
    fi
    leader=$(leader_of "$supervisor")
    add_state "$id" "leader=$leader" "leader_start=$(process_start "$leader")"
}

# PID 1 of the host: the child of nspawn that is number 1 in a PID namespace.
leader_of() {
    local child
    local children=()
    read -r -a children 2>/dev/null <"/proc/$1/task/$1/children" || true
    for child in ${children[@]+"${children[@]}"}; do
        grep -qsE '^NSpid:.*[[:space:]]1$' "/proc/$child/status" && printf '%s\n' "$child" && return
    done
    return 1
}

has_leader() { leader_of "$1" >/dev/null; }

wait_for_running() {
    local id=$1
    wait_until 120 has_booted "$id" || true
    [[ $(system_state "$id") == running ]] && return
    say "error: host $id is '$(system_state "$id")'"
    host_exec "$id" -- systemctl --failed --no-legend --plain >&2 || true
    host_exec "$id" -- journalctl --no-pager -q -b -p warning -n 30 >&2 || true
    tail -n 10 "$(run_dir "$id")/console.log" >&2
    exit 1
}

system_state() { { host_exec "$1" -- systemctl is-system-running || true; } 2>/dev/null; }

has_booted() {
    is_alive "$leader" "$leader_start" || { read_state "$1" && is_alive "$leader" "$leader_start"; } || return 0
    case $(system_state "$1") in running | degraded | maintenance) ;; *) return 1 ;; esac
}

# A subshell or the last act of the program: the shell becomes the command, so that signals and statuses are exact.
host_exec() (
    id=${1:-}
    variables=() directory=/
    need_running "$id"
    shift
    while [[ $# -gt 0 && $1 != -- ]]; do
        case $1 in
            -e) variables+=("$2") ;;
            -w) directory=$2 ;;
            *) bad_usage "exec: unknown option '$1'" ;;
        esac
        shift 2
    done
    (($# > 1)) || bad_usage 'exec: no command; put -- before it'
    shift
    # Inside the host's own group: out of all units, as on a host whose tests are started by hand.
    payload=$(dirname "$(sed -n 's/^0:://p' "/proc/$leader/cgroup")")
    group=$(cgroup2_mount)$payload/machinist-test
    mkdir -p "$group" && echo "$BASHPID" >"$group/cgroup.procs"
    exec nsenter -t "$leader" -m -u -i -n -p -C -- setpriv --pdeathsig KILL -- \
        env --default-signal -i -C "$directory" HOME=/root USER=root LOGNAME=root SHELL=/bin/bash \
        LANG=C.UTF-8 TERM="${TERM:-dumb}" \
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin ${variables[@]+"${variables[@]}"} "$@"
)

# Works on a dead host too, as long as it is not stopped.
host_journal() {
    local id=${1:-} file=${2:-} root guest
    [[ -n $id && -n $file ]] || bad_usage 'journal: ID and FILE are needed'
    root=$(run_dir "$id")/root
    [[ -d $root ]] || fail "no host '$id'; see host list"
    {
        printf '=== journal of host %s ===\n' "$id"
        read_journal "$root" "/var/log/journal/$(<"$root/etc/machine-id")"
        for guest in "$root"/var/lib/machines/*/var/log/journal; do
            [[ -d $guest && ! -L $guest ]] || continue
            printf '=== journal of guest %s ===\n' "$(basename "${guest%/var/log/journal}")"
            read_journal "$root" "${guest#"$root"}"
        done
        printf '=== console of host %s ===\n' "$id"
        cat "$(run_dir "$id")/console.log"
    } >"$file" 2>&1
}

# With the journalctl of the tree: an older one may not read what a newer journald wrote. 262's wants /proc.
read_journal() {
    # shellcheck disable=SC2016
    unshare --mount --propagation private sh -c \
        'mount -t proc proc "$0/proc" && exec chroot "$0" journalctl --no-pager -q -o short-precise -D "$1"' "$1" "$2" || true
}

host_stop() {
    local id
    for id in "$@"; do
        [[ $id == *-?????? && $id != */* ]] || bad_usage "stop: '$id' is no id"
        stop_one "$id"
    done
}

# Killing PID 1 of the PID namespace kills all that is in it, guests and commands included; nothing of value is lost.
stop_one() {
    local id=$1 dir
    dir=$(run_dir "$id")
    if read_state "$id"; then
        kill_process "$leader" "$leader_start" KILL 10
        # nspawn cleans up behind itself when its child is gone.
        wait_until 2 is_gone "$supervisor" "$supervisor_start" || true
        kill_process "$supervisor" "$supervisor_start" KILL 5
    fi
    kill_rest "$id"
    net_down "$id"
    detach_loops "$dir"
    remove_cgroups "$id"
    unmount_remains "$id"
    # Its loop device goes with it.
    ! mountpoint -q "$dir/root" || umount "$dir/root" || umount -l "$dir/root"
    remove_dir "$dir"
}

# A boot that was interrupted may not have written down what it started.
kill_rest() {
    local group rest
    group=$(cgroup2_mount)/machinist-$1
    while rest=$(find "$group" -name cgroup.procs -exec cat {} + 2>/dev/null) && [[ -n $rest ]]; do
        # shellcheck disable=SC2086  # numbers
        kill -KILL $rest 2>/dev/null || true
        sleep 0.1
    done
}

# kill_process PID START SIGNAL SECONDS
kill_process() {
    is_alive "$1" "$2" || return 0
    kill "-$3" "$1" 2>/dev/null || true
    wait_until "$4" is_gone "$1" "$2" || true
}

# A zombie waits for whoever started it, which may be long in coming: it is dead all the same.
is_gone() {
    ! is_alive "$1" "$2" || grep -qs '^State:[[:space:]]*Z' "/proc/$1/status"
}

# Loop devices are the machine's, and outlive the mount namespace; their files are known by device and inode.
detach_loops() {
    local dir=$1 loop inode
    [[ -d $dir/root ]] || return 0
    losetup -n -l -O NAME,BACK-INO 2>/dev/null | while read -r loop inode; do
        [[ -z $(find "$dir/root" -xdev -inum "$inode" -print -quit) ]] || losetup -d "$loop" || true
    done
}

# nspawn makes the group again in systemd's own v1 hierarchy, where there is one.
remove_cgroups() {
    local group
    for group in "$(cgroup2_mount)/machinist-$1" "/sys/fs/cgroup/systemd/machinist-$1"; do
        find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
    done
}

# What nspawn itself mounts outside, and leaves there when it is killed.
unmount_remains() {
    local place
    for place in unix-export propagate; do
        umount -l "/run/systemd/nspawn/$place/$1" 2>/dev/null || true
        rmdir "/run/systemd/nspawn/$place/$1" 2>/dev/null || true
    done
}

remove_dir() {
    [[ -d $1 ]] || return 0
    rm -rf --one-file-system "$1" 2>/dev/null && return
    # Read-only images are immutable files outside btrfs.
    chattr -R -f -i "$1" || true
    rm -rf --one-file-system "$1"
}

host_list() {
    local dir id state
    for dir in $(host_dirs); do
        id=${dir##*/} state=dead
        read_state "$id" && is_alive "$leader" "$leader_start" && state=running
        printf '%s %s leader=%s owner=%s\n' "$id" "$state" "${leader:--}" "${owner:--}"
    done
}

# What is left of runs whose owner is gone: dead hosts, and those that were given to their owner with --owner.
host_sweep() {
    local dir id
    for dir in $(host_dirs); do
        id=${dir##*/}
        # Without a state it may be about to boot.
        read_state "$id" || [[ -n $(find "$dir" -maxdepth 0 -mmin +5) ]] || continue
        # Whoever outlived the one that started it has no owner.
        [[ $owner == 1 ]] || ! is_alive "$owner" "$owner_start" || continue
        [[ -n $bound ]] || ! is_alive "$leader" "$leader_start" || continue
        say "sweeping $id"
        host_stop "$id"
    done
}
