# shellcheck shell=bash
# The cached root trees: CACHE/trees/SUITE-KEY/{root,built}. KEY changes with the package list and with these scripts.

readonly TREE_PACKAGES=(
    acl attr btrfs-progs busybox-static bzip2 ca-certificates dbus debian-archive-keyring debootstrap e2fsprogs
    gpgv init iproute2 iputils-ping jq kmod less libcap2-bin libnss-myhostname libnss-mymachines libpam-systemd
    login mmdebstrap mount netbase nftables passwd polkitd procps python3-minimal strace sudo systemd
    systemd-container systemd-resolved systemd-sysv udev util-linux wget xfsprogs xz-utils zstd
    gpg gpg-agent
    # What disk images, and images of containers, are made with.
    docker-registry erofs-utils fdisk skopeo squashfs-tools umoci xorriso
    # Whose containers become machines.
    lxc
)
# What bookworm does not have.
readonly NEWER_PACKAGES=(ubuntu-keyring)
# The kernel of a virtual machine is its own: there are labels of processes, and emulators of other processors.
readonly VM_PACKAGES=(linux-image-cloud-amd64 initramfs-tools apparmor)

# Documentation and translations are a third of the files, and every host is a copy of the tree.
readonly TREE_OPTIONS=(
    --aptopt='Acquire::Check-Valid-Until "false"'
    --dpkgopt='path-exclude=/usr/share/doc/*'
    --dpkgopt='path-exclude=/usr/share/info/*'
    --dpkgopt='path-exclude=/usr/share/locale/*'
    --dpkgopt='path-exclude=/usr/share/man/*'
)

# The mirror that this machine uses for Debian itself (not for security updates, not for Ubuntu), else the public one.
mirror() {
    local uri=${MACHINIST_TEST_MIRROR:-}
    [[ -n $uri ]] || uri=$(mirror_by_name) || uri=$(mirror_by_label) || uri=http://deb.debian.org/debian
    printf '%s\n' "${uri%/}"
}

mirror_by_name() {
    # Not a pipe: grep's status tells of files that are not there.
    local lines
    lines=$(grep -hsE '^(deb|URIs:)[[:space:]]' /etc/apt/sources.list /etc/apt/sources.list.d/*.{list,sources}) || true
    [[ $lines =~ (https?://[^[:space:]]+/debian)/?([[:space:]]|$) ]] && printf '%s\n' "${BASH_REMATCH[1]}"
}

# Slower, but knows mirrors whose path does not say what they are.
mirror_by_label() {
    # shellcheck disable=SC2016  # apt's own placeholders
    apt-get indextargets --format '$(REPO_URI) $(LABEL)' 'Created-By: Packages' 2>/dev/null |
        awk '/^https?:/ && $2 == "Debian" && NF == 2 && !uri {uri = $1} END {if (!uri) exit 1; print uri}'
}

# tree_key NAME: NAME is SUITE, SUITE-vm or qemu.
tree_key() {
    { declare -p TREE_PACKAGES NEWER_PACKAGES TREE_OPTIONS
      declare -f make_tree
      mirror
      cat "$HERE/lib/customize"
      [[ $1 != *-vm ]] || { declare -p VM_PACKAGES; cat "$HERE/lib/customize-vm"; }
      [[ $1 != qemu ]] || declare -f make_qemu_tree
    } | sha256sum | cut -c1-12
}

tree_dir() { printf '%s\n' "$CACHE/trees/$1-$(tree_key "$1")"; }

is_fresh() {
    [[ -d $1/root && -n $(find "$1/built" -mtime "-$TREE_DAYS" 2>/dev/null) ]]
}

build_command() {
    local suite=${1:-} name
    need_suite "$suite"
    name=$suite
    [[ ${2:-} == --vm ]] && name=$suite-vm
    ensure_tree "$name"
    printf '%s\n' "$(tree_dir "$name")/root"
}

# ensure_tree NAME: builds it unless it is there. Of two runs side by side the second waits for the first.
ensure_tree() {
    local name=$1 dir
    need_root
    dir=$(tree_dir "$name")
    is_fresh "$dir" && return 0
    install_tools
    mkdir -p "$CACHE"/{lock,run,trees}
    chmod 700 "$CACHE"
    exec {tree_lock}>"$CACHE/lock/$name"
    flock "$tree_lock"
    is_fresh "$dir" || rebuild_tree "$name" "$dir"
    exec {tree_lock}>&-
}

rebuild_tree() {
    local name=$1 dir=$2 new=$CACHE/trees/.new-$1 began=$SECONDS
    say "building the root tree of $name"
    # The lock is ours, so whatever lies there is from a run that was killed.
    rm -rf --one-file-system "$new"
    mkdir -m 700 "$new"
    if ! make_tree "$name" "$new" >"$CACHE/build-$name.log" 2>&1; then
        rm -rf --one-file-system "$new"
        tail -n 15 "$CACHE/build-$name.log" >&2
        [[ -d $dir/root ]] || cannot "the root tree of $name cannot be built; the whole log: $CACHE/build-$name.log"
        say "warning: using the tree of $name that is older than $TREE_DAYS days"
        return 0
    fi
    touch "$new/built"
    # Readers hold the lock while they copy: nobody is in the old one.
    [[ ! -d $dir ]] || { mv "$dir" "$new-old"; rm -rf --one-file-system "$new-old"; }
    mv "$new" "$dir"
    drop_old_trees "$name" "$dir"
    say "built the root tree of $name in $((SECONDS - began)) s"
}

# Tier 2's emulator: 7.2, which bookworm has, loses the flags register now and then, and the kernel in it dies.
# Unpacked, not installed: it is all that is run from there.
make_qemu_tree() {
    mmdebstrap --variant=extract --mode=root --format=directory --keyring="$KEYRING" "${TREE_OPTIONS[@]}" \
        --include=base-files,qemu-system-x86 trixie "$1/root" "$(mirror)"
}

# Called in a condition, where `set -e` is off: keep it to one command that counts.
make_tree() {
    [[ $1 != qemu ]] || { make_qemu_tree "$2"; return; }
    local suite=${1%-vm} new=$2 packages=("${TREE_PACKAGES[@]}") hooks=(--customize-hook="$HERE/lib/customize") IFS=,
    [[ $suite == bookworm ]] || packages+=("${NEWER_PACKAGES[@]}")
    if [[ $1 == *-vm ]]; then
        packages+=("${VM_PACKAGES[@]}")
        # Of bookworm's emulators only the static ones are opened by the kernel, once for all trees.
        if [[ $suite == bookworm ]]; then packages+=(qemu-user-static); else packages+=(qemu-user-binfmt); fi
        # Before there is a kernel, whose installation makes the initial RAM disk.
        hooks+=(--essential-hook="$HERE/lib/customize-vm initrd \"\$1\"" --customize-hook="$HERE/lib/customize-vm agent \"\$1\"")
    fi
    mmdebstrap --variant=minbase --mode=root --format=directory --keyring="$KEYRING" "${TREE_OPTIONS[@]}" \
        --include="${packages[*]}" "${hooks[@]}" "$suite" "$new/root" "$(mirror)"
}

# Trees of other keys may belong to another branch that is being tested: only old ones go.
drop_old_trees() {
    local old
    for old in "$CACHE/trees/$1"-????????????; do
        [[ $old == "$2" ]] || is_fresh "$old" || rm -rf --one-file-system "$old"
    done
}

# copy_tree NAME DEST: a plain copy takes half a second and is a real file system, which an overlay is not.
copy_tree() {
    local name=$1 dest=$2
    exec {tree_lock}>"$CACHE/lock/$name"
    flock --shared "$tree_lock"
    cp -aT --reflink=auto "$(tree_dir "$name")/root" "$dest"
    exec {tree_lock}>&-
}
