# shellcheck shell=bash
# Tier 2: the same host in a virtual machine, under plain emulation. A file IMAGE is the disk; IMAGE.vm/ beside it holds
# kernel, initial RAM disk, the console's log, qemu's process and two pipes to a virtio port. A small agent inside reads
# commands from the one and answers on the other: no network, and nothing but bash is needed on either side.

vm_dir() { printf '%s.vm\n' "$1"; }

vm_build() {
    local suite=${1:-} image=${2:-} copies=() dir
    need_suite "$suite"
    [[ -n $image ]] || bad_usage 'vm-build: no IMAGE given'
    shift 2
    while (($#)); do
        [[ $1 == --copy ]] || bad_usage "vm-build: unknown option '$1'"
        copies+=("$2")
        shift 2
    done
    install_tools vm
    ensure_tree "$suite-vm"
    image=$(realpath -m "$image") dir=$(vm_dir "$image")
    rm -rf --one-file-system "$image" "$dir"
    mkdir -p "$dir"
    # shellcheck disable=SC2064
    trap "rm -rf --one-file-system '$dir/root'" EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    copy_tree "$suite-vm" "$dir/root"
    cp "$dir"/root/boot/vmlinuz-* "$dir/kernel"
    cp "$dir"/root/boot/initrd.img-* "$dir/initrd"
    copy_into "$dir/root" ${copies[@]+"${copies[@]}"}
    mke2fs -q -t ext4 -d "$dir/root" "$image" "${MACHINIST_TEST_DISK:-4G}"
}

vm_boot() {
    local image dir
    image=$(realpath "${1:?IMAGE}") dir=$(vm_dir "$image")
    [[ -e $dir/kernel ]] || fail "no image '$image'; see host vm-build"
    ! vm_is_running "$dir" || fail "'$image' is running already"
    # What the last boot printed must not satisfy vm-wait, but is worth keeping.
    [[ ! -e $dir/console ]] || cat "$dir/console" >>"$dir/console.before"
    : >"$dir/console"
    rm -f "$dir"/port.{in,out}
    mkfifo "$dir"/port.{in,out}
    setsid qemu-system-x86_64 -accel tcg,thread=multi -cpu max,la57=off -smp 2 -m "${MACHINIST_TEST_MEMORY:-2048}" \
        -nodefaults -display none -no-reboot -kernel "$dir/kernel" -initrd "$dir/initrd" \
        -append 'console=ttyS0 root=/dev/vda rw quiet panic=-1 mitigations=off' \
        -drive "file=$image,format=raw,if=virtio,cache=unsafe" -serial "file:$dir/console" -nic none \
        -chardev "pipe,id=port,path=$dir/port" -device virtio-serial -device virtserialport,chardev=port,name=machinist \
        </dev/null >"$dir/qemu.log" 2>&1 &
    printf '%s %s\n' "$!" "$(process_start "$!")" >"$dir/qemu"
    printf '%s\n' "$!"
}

# vm_is_running DIR: sets qemu and qemu_start.
vm_is_running() {
    qemu='' qemu_start=''
    [[ -r $1/qemu ]] && read -r qemu qemu_start <"$1/qemu" && is_alive "$qemu" "$qemu_start" && ! is_gone "$qemu" "$qemu_start"
}

vm_wait() {
    local dir mark=${2:?MARK}
    dir=$(vm_dir "$(realpath "${1:?IMAGE}")")
    wait_until "${3:-300}" vm_said_or_died "$dir" "$mark" || true
    vm_said "$dir" "$mark" && return
    tail -n 30 "$dir/console" "$dir/qemu.log" >&2
    say "error: the virtual machine did not say 'vmtest: $mark'"
    exit 124
}

# Whole lines; the console ends them with a carriage return.
vm_said() { tr -d '\r' <"$1/console" | grep -qxF "vmtest: $2"; }
vm_said_or_died() { vm_said "$1" "$2" || ! vm_is_running "$1"; }

# vm_exec IMAGE [-t SECONDS] -- CMD...: stdout and stderr come together, at the end.
vm_exec() {
    local dir timeout=300 command number answer
    dir=$(vm_dir "$(realpath "${1:?IMAGE}")")
    shift
    while [[ $# -gt 0 && $1 != -- ]]; do
        [[ $1 == -t ]] || bad_usage "vm-exec: unknown option '$1'"
        timeout=$2
        shift 2
    done
    (($# > 1)) || bad_usage 'vm-exec: no command; put -- before it'
    shift
    vm_is_running "$dir" || fail 'the virtual machine is not running'
    exec {port_lock}>"$dir/lock"
    flock "$port_lock"
    number=$RANDOM$RANDOM
    printf -v command '%q ' "$@"
    printf '%s %s\n' "$number" "$(base64 -w0 <<<"$command")" >"$dir/port.in"
    answer=$(vm_answer "$dir" "$number" "$timeout")
    base64 -d <<<"${answer#* }"
    exit "${answer%% *}"
}

# Opened for both directions: opening for reading alone would wait for a writer for ever once qemu is dead.
vm_answer() {
    local dir=$1 number=$2 end=$((SECONDS + $3)) line
    exec {answers}<>"$dir/port.out"
    while ((SECONDS < end)) && vm_is_running "$dir"; do
        read -r -t 1 -u "$answers" line || continue
        # Answers to a call that gave up may still come.
        [[ $line != "$number "* ]] || { printf '%s\n' "${line#* }"; return; }
    done
    vm_is_running "$dir" || fail 'the virtual machine died during the command'
    say 'error: no answer from the virtual machine'
    exit 124
}

vm_poweroff() {
    local dir
    dir=$(vm_dir "$(realpath "${1:?IMAGE}")")
    vm_is_running "$dir" || return 0
    (vm_exec "$1" -t 60 -- systemctl --no-block poweroff) >&2
    wait_until "${2:-120}" is_gone "$qemu" "$qemu_start" || fail 'the virtual machine does not shut down'
}

vm_kill() {
    local dir
    dir=$(vm_dir "$(realpath "${1:?IMAGE}")")
    vm_is_running "$dir" || return 0
    kill_process "$qemu" "$qemu_start" KILL 10
}
