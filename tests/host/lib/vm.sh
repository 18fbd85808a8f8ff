# shellcheck shell=bash
# Tier 2: the same host in a virtual machine, under plain emulation. IMAGE is a directory with the disk, kernel, initial
# RAM disk, the console's log, qemu's process and two pipes to a virtio port. A small agent inside reads commands from
# the one and answers on the other: no network, and nothing but bash is needed on either side.

vm_build() {
    local suite=${1:-} image=${2:-} copies=() program=''
    need_suite "$suite"
    [[ -n $image ]] || bad_usage 'vm-build: no IMAGE given'
    shift 2
    while (($#)); do
        case $1 in
            --copy) copies+=("$2") ;;
            --program) program=$2 ;;
            *) bad_usage "vm-build: unknown option '$1'" ;;
        esac
        shift 2
    done
    ensure_tree "$suite-vm"
    ensure_tree qemu
    [[ ! -e $image || -e $image/disk || -z $(ls -A "$image") ]] || fail "'$image' exists and is no image"
    ! vm_is_running "$image" || fail "'$image' is running"
    rm -rf --one-file-system "$image"
    mkdir -p "$image"
    # shellcheck disable=SC2064
    trap "rm -rf --one-file-system '$image/root'" EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    copy_tree "$suite-vm" "$image/root"
    mv "$image"/root/boot/vmlinuz-* "$image/kernel"
    mv "$image"/root/boot/initrd.img-* "$image/initrd"
    copy_into "$image/root" ${copies[@]+"${copies[@]}"}
    [[ -z $program ]] || install_program "$image/root" "$program"
    truncate -s "${MACHINIST_TEST_DISK:-4G}" "$image/disk"
    mke2fs -q -t ext4 -E root_owner=0:0 -d "$image/root" "$image/disk"
}

# need_image IMAGE: prints its directory.
need_image() {
    [[ -n ${1:-} && -e $1/kernel && -e $1/disk ]] || fail "no image '${1:-}'; see host vm-build"
    realpath "$1"
}

vm_boot() {
    local image qemu_tree
    image=$(need_image "${1:-}")
    qemu_tree=$(tree_dir qemu)/root
    [[ -d $qemu_tree ]] || ensure_tree qemu
    ! vm_is_running "$image" || fail "'$image' is running already"
    # What the last boot printed must not satisfy vm-wait, but is worth keeping.
    [[ ! -e $image/console ]] || cat "$image/console" >>"$image/console.before"
    : >"$image/console"
    rm -f "$image"/port.{in,out}
    mkfifo "$image"/port.{in,out}
    # Each step becomes the next one: the process that is started here is qemu in the end.
    # shellcheck disable=SC2016
    setsid unshare --mount --propagation slave sh -c \
        'mount --rbind /dev "$0/dev" && mount --bind "$1" "$0/tmp" && shift && exec chroot "$0" "$@"' \
        "$qemu_tree" "$image" /usr/bin/qemu-system-x86_64 \
        -accel tcg,thread=multi -cpu max,la57=off -smp 2 -m "${MACHINIST_TEST_MEMORY:-2048}" \
        -nodefaults -display none -no-reboot -kernel /tmp/kernel -initrd /tmp/initrd \
        -append 'console=ttyS0 root=/dev/vda rw quiet panic=-1 mitigations=off cryptomgr.notests' \
        -drive file=/tmp/disk,format=raw,if=virtio,cache=unsafe -serial file:/tmp/console -nic none \
        -chardev pipe,id=port,path=/tmp/port -device virtio-serial -device virtserialport,chardev=port,name=machinist \
        </dev/null >"$image/qemu.log" 2>&1 &
    printf '%s %s\n' "$!" "$(process_start "$!")" >"$image/qemu"
    printf '%s\n' "$!"
}

# vm_is_running IMAGE: sets qemu and qemu_start.
vm_is_running() {
    qemu='' qemu_start=''
    [[ -r $1/qemu ]] && read -r qemu qemu_start <"$1/qemu" && is_alive "$qemu" "$qemu_start" && ! is_gone "$qemu" "$qemu_start"
}

vm_wait() {
    local image mark=${2:?MARK}
    image=$(need_image "${1:-}")
    POLL=0.5 wait_until "${3:-300}" vm_said_or_died "$image" "$mark" || true
    vm_said "$image" "$mark" && return
    tail -n 30 "$image/console" "$image/qemu.log" >&2
    say "error: the virtual machine did not say 'vmtest: $mark'"
    exit 124
}

# Whole lines; the console ends them with a carriage return.
vm_said() { tr -d '\r' <"$1/console" | grep -qxF "vmtest: $2"; }
vm_said_or_died() { vm_said "$1" "$2" || ! vm_is_running "$1"; }

# vm_exec IMAGE [-t SECONDS] -- CMD...: stdout and stderr come together, at the end.
vm_exec() {
    local image timeout=300 command number answer
    image=$(need_image "${1:-}")
    shift
    while [[ $# -gt 0 && $1 != -- ]]; do
        [[ $1 == -t ]] || bad_usage "vm-exec: unknown option '$1'"
        timeout=$2
        shift 2
    done
    (($# > 1)) || bad_usage 'vm-exec: no command; put -- before it'
    shift
    vm_is_running "$image" || fail 'the virtual machine is not running'
    exec {port_lock}>"$image/lock"
    flock "$port_lock"
    number=$RANDOM$RANDOM
    printf -v command '%q ' "$@"
    # Opening a pipe whose other end just died would take for ever.
    printf '%s %s\n' "$number" "$(base64 -w0 <<<"$command")" | timeout 10 tee "$image/port.in" >/dev/null ||
        fail 'the virtual machine takes no commands'
    # Answers to a call that gave up may come first. The file ends when qemu does.
    timeout "$timeout" sed -n "/^$number begin$/,/^$number end /p; /^$number end /q" "$image/port.out" >"$image/answer" || true
    answer=$(tail -n 1 "$image/answer")
    if [[ $answer != "$number end "* ]]; then
        vm_is_running "$image" || fail 'the virtual machine died during the command'
        say "error: no answer from the virtual machine in $timeout s"
        exit 124
    fi
    sed '1d; $d' "$image/answer" | base64 -d
    exit "${answer##* }"
}

vm_poweroff() {
    local image
    image=$(need_image "${1:-}")
    vm_is_running "$image" || return 0
    # It may be off before the answer is out.
    (vm_exec "$1" -t 60 -- systemctl --no-block poweroff) >"$image/poweroff" 2>&1 || true
    wait_until "${2:-120}" is_gone "$qemu" "$qemu_start" ||
        fail "the virtual machine does not shut down: $(tail -n 3 "$image/poweroff")"
}

vm_kill() {
    local image
    image=$(need_image "${1:-}")
    vm_is_running "$image" || return 0
    kill_process "$qemu" "$qemu_start" KILL 10
}
