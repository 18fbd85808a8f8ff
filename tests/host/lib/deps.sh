# shellcheck shell=bash
# The programs of the build machine, and the Debian packages they come from.

readonly TOOLS='mmdebstrap:mmdebstrap systemd-nspawn:systemd-container nft:nftables ip:iproute2 nsenter:util-linux
    flock:util-linux setpriv:util-linux mke2fs:e2fsprogs'
readonly KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

missing_packages() {
    local tool
    for tool in $TOOLS; do
        command -v "${tool%%:*}" >/dev/null || printf '%s\n' "${tool#*:}"
    done | sort -u
    [[ -e $KEYRING ]] || echo debian-archive-keyring
}

install_tools() {
    local missing
    mapfile -t missing < <(missing_packages)
    ((${#missing[@]})) || return 0
    if [[ $EUID -ne 0 ]] || ! command -v apt-get >/dev/null; then
        cannot "please install: ${missing[*]}"
    fi
    say "installing ${missing[*]}"
    apt_install "${missing[@]}" || cannot "apt-get could not install: ${missing[*]}"
}

apt_install() {
    local apt=(apt-get -q -y -o DPkg::Lock::Timeout=300 --no-install-recommends)
    export DEBIAN_FRONTEND=noninteractive
    # The lists may be missing or stale: only a second failure counts.
    "${apt[@]}" install "$@" >&2 || { "${apt[@]}" update >&2 && "${apt[@]}" install "$@" >&2; }
}
